"""Routes: where ready replicas are, and what gateways must know to use them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from busbar_scheduler.domain.economy import loading_s
from busbar_scheduler.domain.fleet import (
    Demand,
    Deployment,
    Node,
    Order,
    Replica,
    ReplicaState,
    Route,
    Routes,
    Target,
)


def route_of(
    deployment: Deployment, holders: Sequence[Node], previous: Routes, demand: Demand | None
) -> Route:
    """The route that the actual states of the nodes that hold it allow."""
    ready = [(node, one) for node in holders if (one := _ready_replica(node, deployment))]
    metadata, config = _model_files(deployment, [one for _, one in ready], previous)
    return Route(
        deployment=deployment.name,
        digest=deployment.digest,
        manifest=deployment.manifest,
        targets=_targets(ready),
        tenants=deployment.tenants,
        model_metadata=metadata,
        model_config=config,
        created_unix_ms=deployment.created_unix_ms,
        unready_reason="" if ready else _why_unready(deployment, holders, demand),
        wakes_within_ms=_wakes_within_ms(deployment, holders, demand),
    )


def _wakes_within_ms(deployment: Deployment, holders: Sequence[Node], demand: Demand | None) -> int:
    """How long a request for it would wait when nothing is ready; 0 when in vain."""
    if not deployment.sleeps:
        return 0
    nowhere = demand is not None and demand.replicas > 0 and not holders
    if nowhere or (holders and all(_failed(node, deployment) for node in holders)):
        return 0
    if demand is not None and demand.loading_ms:
        return demand.loading_ms
    return loading_s(deployment, cached=False) * 1_000


def _failed(node: Node, deployment: Deployment) -> bool:
    replica = node.replica_of(deployment.name)
    return (
        replica is not None
        and replica.digest == deployment.digest
        and replica.state is ReplicaState.FAILED
    )


def _ready_replica(node: Node, deployment: Deployment) -> Replica | None:
    replica = node.replica_of(deployment.name)
    if replica is None or not node.health.serves or node.order is Order.QUARANTINE:
        return None
    fits = replica.state is ReplicaState.READY and replica.digest == deployment.digest
    return replica if fits else None


def _targets(ready: Iterable[tuple[Node, Replica]]) -> tuple[Target, ...]:
    slots, replicas = defaultdict[str, int](int), defaultdict[str, int](int)
    for node, replica in ready:
        slots[node.region] += replica.slots
        replicas[node.region] += 1
    return tuple(Target(region, slots[region], replicas[region]) for region in sorted(slots))


def _model_files(
    deployment: Deployment, ready: Sequence[Replica], previous: Routes
) -> tuple[bytes, bytes]:
    """Triton's description of the model, kept while the bundle is the same.

    What a route without a replica of its own had may be that of a version on trial.
    """
    before = previous.get(deployment.name)
    described = next((one for one in ready if one.model_metadata), None)
    known = before and before.digest == deployment.digest and before.model_metadata
    if before and known and (before.targets or described is None):
        return before.model_metadata, before.model_config
    return (described.model_metadata, described.model_config) if described else (b"", b"")


def _why_unready(deployment: Deployment, holders: Sequence[Node], demand: Demand | None) -> str:
    if not deployment.most:
        return "no replicas are wanted"
    if not holders and deployment.sleeps and not (demand and demand.replicas):
        return "it sleeps until it is asked for"
    if not holders:
        return "no node has room for it"
    return "; ".join(_state_on(node, deployment) for node in holders)


def _state_on(node: Node, deployment: Deployment) -> str:
    if node.order is Order.QUARANTINE:
        return f"{node.label} is quarantined"
    if not node.health.serves:
        return f"{node.label} is {node.health}"
    replica = node.replica_of(deployment.name)
    if replica is None or replica.digest != deployment.digest:
        return f"waiting for {node.label}"
    reason = f": {replica.reason}" if replica.reason else ""
    return f"{replica.state} on {node.label}{reason}"
