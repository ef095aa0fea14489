"""Between the bus's messages and the domain's values."""

from __future__ import annotations

from collections.abc import Mapping

from busbar_contracts.node.v1.status_pb2 import NodeStatus
from busbar_contracts.node.v1.status_pb2 import ReplicaState as ReplicaStateMessage
from busbar_contracts.scheduler.v1.deployment_pb2 import Canary as CanaryMessage
from busbar_contracts.scheduler.v1.deployment_pb2 import Deployment as DeploymentMessage
from busbar_contracts.scheduler.v1.deployment_pb2 import (
    ModelBundle,
    ModelManifest,
    ModelTask,
)
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement, ReplicaAssignment
from busbar_contracts.scheduler.v1.plan_pb2 import Route as RouteMessage
from busbar_contracts.scheduler.v1.site_pb2 import NodeOrder, OrderKind, PlaceOrder
from busbar_contracts.scheduler.v1.site_pb2 import Site as SiteMessage
from busbar_errors import Rejected

from busbar_scheduler.adapters import rollout_codec as rollouts
from busbar_scheduler.domain.fleet import (
    SCALE_DOWN_AFTER_S,
    Assignment,
    Bundle,
    Deployment,
    Order,
    Replica,
    ReplicaState,
    Route,
    Site,
)
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.orders import Described, Told
from busbar_scheduler.domain.rollouts import Canary

_TASKS = {
    Task.TENSOR: ModelTask.MODEL_TASK_TENSOR,
    Task.EMBED: ModelTask.MODEL_TASK_EMBED,
    Task.CHAT: ModelTask.MODEL_TASK_CHAT,
}
_TASKS_BACK = {message: task for task, message in _TASKS.items()}
_STATES = {
    ReplicaStateMessage.REPLICA_STATE_FETCHING: ReplicaState.FETCHING,
    ReplicaStateMessage.REPLICA_STATE_LOADING: ReplicaState.LOADING,
    ReplicaStateMessage.REPLICA_STATE_WARMING: ReplicaState.WARMING,
    ReplicaStateMessage.REPLICA_STATE_READY: ReplicaState.READY,
    ReplicaStateMessage.REPLICA_STATE_DRAINING: ReplicaState.DRAINING,
    ReplicaStateMessage.REPLICA_STATE_FAILED: ReplicaState.FAILED,
}


def manifest_message(manifest: Manifest) -> ModelManifest:
    """A manifest as the bus carries it."""
    return ModelManifest(
        name=manifest.name,
        version=manifest.version,
        task=_TASKS[manifest.task],
        slots=manifest.slots,
        memory_mib=manifest.memory_mib,
        max_input_tokens=manifest.max_input_tokens,
        max_output_tokens=manifest.max_output_tokens,
        max_payload_bytes=manifest.max_payload_bytes,
        price_class=manifest.price_class,
        chat_template=manifest.chat_template,
        input_tokens_output=manifest.input_tokens_output,
        output_tokens_output=manifest.output_tokens_output,
        cached_tokens_output=manifest.cached_tokens_output,
        stop=manifest.stop,
        power_w=manifest.power_w,
    )


def manifest_of(message: ModelManifest) -> Manifest:
    """The manifest in a message; raises Rejected when its task is unknown."""
    task = _TASKS_BACK.get(message.task)
    if task is None:
        raise Rejected(f"manifest of {message.name!r} has no known task: {message.task}")
    return Manifest(
        name=message.name,
        version=message.version,
        task=task,
        slots=message.slots,
        memory_mib=message.memory_mib,
        price_class=message.price_class,
        max_input_tokens=message.max_input_tokens,
        max_output_tokens=message.max_output_tokens,
        max_payload_bytes=message.max_payload_bytes,
        chat_template=message.chat_template,
        input_tokens_output=message.input_tokens_output,
        output_tokens_output=message.output_tokens_output,
        cached_tokens_output=message.cached_tokens_output,
        stop=tuple(message.stop),
        power_w=message.power_w,
    )


def deployment_message(deployment: Deployment) -> DeploymentMessage:
    """A declared deployment as the bus carries it."""
    return DeploymentMessage(
        name=deployment.name,
        bundle_digest=deployment.digest,
        manifest=manifest_message(deployment.manifest),
        replicas=deployment.replicas,
        regions=deployment.regions,
        tenants=deployment.tenants,
        created_unix_ms=deployment.created_unix_ms,
        max_replicas=deployment.max_replicas,
        pins=deployment.pins,
        per_site_max=deployment.per_site_max,
        per_feeder_max=deployment.per_feeder_max,
        survives_site_loss=deployment.survives_site_loss,
        value_nanos_per_request=deployment.value_nanos_per_request,
        previous_bundle_digest=deployment.previous_digest,
        scale_down_after_s=deployment.scale_down_after_s,
        rollout=rollouts.terms_message(deployment.rollout),
        canary=_canary_message(deployment.canary),
        rolled_back=rollouts.rolled_back_message(deployment.rolled_back),
    )


def _canary_message(canary: Canary | None) -> CanaryMessage | None:
    if canary is None:
        return None
    return CanaryMessage(
        bundle_digest=canary.digest,
        manifest=manifest_message(canary.manifest),
        phase=rollouts.PHASES[canary.phase],
        percent=canary.percent,
        since_unix_ms=canary.since_unix_ms,
    )


def _canary_of(message: CanaryMessage) -> Canary:
    return Canary(
        digest=message.bundle_digest,
        manifest=manifest_of(message.manifest),
        phase=rollouts.phase_of(message.phase),
        percent=message.percent,
        since_unix_ms=message.since_unix_ms,
    )


def deployment_of(message: DeploymentMessage) -> Deployment:
    """The deployment in a message."""
    return Deployment(
        name=message.name,
        digest=message.bundle_digest,
        manifest=manifest_of(message.manifest),
        replicas=message.replicas,
        regions=tuple(message.regions),
        tenants=tuple(message.tenants),
        created_unix_ms=message.created_unix_ms,
        max_replicas=message.max_replicas,
        pins=tuple(message.pins),
        per_site_max=message.per_site_max,
        per_feeder_max=message.per_feeder_max,
        survives_site_loss=message.survives_site_loss,
        value_nanos_per_request=message.value_nanos_per_request,
        previous_digest=message.previous_bundle_digest,
        scale_down_after_s=message.scale_down_after_s or SCALE_DOWN_AFTER_S,
        rollout=rollouts.terms_of(message.rollout) if message.HasField("rollout") else None,
        canary=_canary_of(message.canary) if message.HasField("canary") else None,
        rolled_back=rollouts.rolled_back_of(message.rolled_back)
        if message.HasField("rolled_back")
        else None,
    )


def bundle_message(bundle: Bundle) -> ModelBundle:
    """A pushed bundle as the bus carries it."""
    return ModelBundle(
        digest=bundle.digest,
        size_bytes=bundle.size_bytes,
        manifest=manifest_message(bundle.manifest),
        pushed_unix_ms=bundle.pushed_unix_ms,
    )


def bundle_of(message: ModelBundle) -> Bundle:
    """The bundle in a message."""
    return Bundle(
        digest=message.digest,
        size_bytes=message.size_bytes,
        manifest=manifest_of(message.manifest),
        pushed_unix_ms=message.pushed_unix_ms,
    )


_ORDERS = {
    Order.SERVE: OrderKind.ORDER_KIND_UNSPECIFIED,
    Order.CORDON: OrderKind.ORDER_KIND_CORDON,
    Order.DRAIN: OrderKind.ORDER_KIND_DRAIN,
    Order.QUARANTINE: OrderKind.ORDER_KIND_QUARANTINE,
}
_ORDERS_BACK = {message: order for order, message in _ORDERS.items()}


def site_message(described: Described) -> SiteMessage:
    """A described site as the bus carries it."""
    site = described.site
    return SiteMessage(
        site=site.key,
        power_cap_w=site.power_cap_w,
        energy_nanos_per_kwh=site.energy_nanos_per_kwh,
        feeder=site.feeder,
        order=_order_message(described.told) if described.told else None,
        nodes=[
            NodeOrder(node=node, order=_order_message(told))
            for node, told in sorted({**_serving(described), **described.nodes}.items())
        ],
    )


def _serving(described: Described) -> dict[str, Told]:
    return {node: Told(Order.SERVE, at) for node, at in described.resumed.items()}


def _order_message(told: Told) -> PlaceOrder:
    return PlaceOrder(
        kind=_ORDERS[told.order],
        given_unix_ms=told.given_unix_ms,
        grace_ms=told.grace_ms,
        reason=told.reason,
    )


def site_of(message: SiteMessage) -> Described:
    """The described site in a message."""
    site = Site(message.site, message.power_cap_w, message.energy_nanos_per_kwh, message.feeder)
    nodes = {one.node: told for one in message.nodes if (told := _told(one.order))}
    serve = OrderKind.ORDER_KIND_UNSPECIFIED
    resumed = {x.node: x.order.given_unix_ms for x in message.nodes if x.order.kind == serve}
    told = _told(message.order) if message.HasField("order") else None
    return Described(site, told, nodes, resumed)


def _told(message: PlaceOrder) -> Told | None:
    order = _ORDERS_BACK.get(message.kind, Order.SERVE)
    if order is Order.SERVE:
        return None
    return Told(order, message.given_unix_ms, message.grace_ms, message.reason)


def placement_message(
    node: str,
    held: tuple[Assignment, ...],
    fencing_token: int,
    snapshot_revision: int,
    *,
    drain_within_ms: int = 0,
    queues: Mapping[str, str] | None = None,
) -> NodePlacement:
    """What a node must hold, as the bus carries it; `queues` maps deployments to queues' names."""
    named = queues or {}
    return NodePlacement(
        node=node,
        fencing_token=fencing_token,
        snapshot_revision=snapshot_revision,
        drain_within_ms=drain_within_ms,
        replicas=[
            ReplicaAssignment(
                deployment=one.deployment,
                bundle_digest=one.digest,
                slots=one.slots,
                input_tokens_output=one.input_tokens_output,
                output_tokens_output=one.output_tokens_output,
                cached_tokens_output=one.cached_tokens_output,
                queue=named.get(one.deployment, ""),
            )
            for one in held
        ],
    )


def queues_of(message: NodePlacement) -> dict[str, str]:
    """What a message says that the queues of deployments are called, where it does."""
    return {one.deployment: one.queue for one in message.replicas if one.queue}


def placement_of(message: NodePlacement) -> tuple[Assignment, ...]:
    """What a message says that a node must hold."""
    return tuple(
        Assignment(
            deployment=one.deployment,
            digest=one.bundle_digest,
            slots=one.slots,
            input_tokens_output=one.input_tokens_output,
            output_tokens_output=one.output_tokens_output,
            cached_tokens_output=one.cached_tokens_output,
        )
        for one in message.replicas
    )


def route_message(route: Route, fencing_token: int) -> RouteMessage:
    """A route as the bus carries it."""
    return RouteMessage(
        deployment=route.deployment,
        fencing_token=fencing_token,
        bundle_digest=route.digest,
        manifest=manifest_message(route.manifest),
        targets=rollouts.target_messages(route.targets),
        tenants=route.tenants,
        model_metadata=route.model_metadata,
        model_config=route.model_config,
        created_unix_ms=route.created_unix_ms,
        unready_reason=route.unready_reason,
        wakes=route.wakes_within_ms > 0,
        wakes_within_ms=route.wakes_within_ms,
        canary=rollouts.route_message(route.canary),
    )


def route_of(message: RouteMessage) -> Route:
    """The route in a message."""
    return Route(
        deployment=message.deployment,
        digest=message.bundle_digest,
        manifest=manifest_of(message.manifest),
        targets=rollouts.targets_of(message.targets),
        tenants=tuple(message.tenants),
        model_metadata=message.model_metadata,
        model_config=message.model_config,
        created_unix_ms=message.created_unix_ms,
        unready_reason=message.unready_reason,
        wakes_within_ms=message.wakes_within_ms if message.wakes else 0,
        canary=rollouts.route_of(message.canary) if message.HasField("canary") else None,
    )


def replicas_of(message: NodeStatus) -> tuple[Replica, ...]:
    """What a node reports that it holds."""
    return tuple(
        Replica(
            deployment=one.deployment,
            digest=one.bundle_digest,
            state=_STATES.get(one.state, ReplicaState.UNKNOWN),
            slots=one.slots,
            reason=one.reason,
            model_metadata=rollouts.metadata_of(one.deployment, one.model_metadata),
            model_config=rollouts.config_of(one.deployment, one.model_config),
            failed_count=one.failed_count,
            crashed_count=one.crashed_count,
        )
        for one in message.replicas
    )
