"""Bucket entries into reports: protobuf in, domain out."""

from __future__ import annotations

from busbar_contracts.gateway.v1.status_pb2 import DeploymentLoad, GatewayStatus
from busbar_contracts.node.v1.status_pb2 import (
    NodeLease,
    NodeStatus,
    ReplicaState,
    ReplicaStatus,
    TritonState,
)
from busbar_contracts.scheduler.v1.deployment_pb2 import Deployment, ModelTask
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement, Route
from busbar_messaging.dispositions import decode
from google.protobuf.descriptor import EnumDescriptor

from busbar_telemetry.domain.rates import Counters
from busbar_telemetry.domain.reports import (
    DeploymentReport,
    GatewayReport,
    LeaseReport,
    LoadReport,
    NodeReport,
    ReplicaReport,
    RouteReport,
    TargetReport,
)


def node_report(value: bytes) -> NodeReport:
    """A value of the `nodes` bucket."""
    status = decode(NodeStatus, value)
    return NodeReport(
        agent_run_id=status.agent_run_id,
        agent_version=status.agent_version,
        memory_mib=status.capacity.memory_mib,
        slots=status.capacity.slots,
        gpus=tuple(status.capacity.gpus),
        energy_measured=status.capacity.energy_measured,
        triton_state=_word(TritonState.DESCRIPTOR, status.triton_state),
        triton_reason=status.triton_reason,
        triton_restarts=status.triton_restarts,
        draining=status.draining,
        replicas=tuple(_replica(replica) for replica in status.replicas),
    )


def _replica(replica: ReplicaStatus) -> ReplicaReport:
    return ReplicaReport(
        deployment=replica.deployment,
        bundle_digest=replica.bundle_digest,
        state=_word(ReplicaState.DESCRIPTOR, replica.state),
        reason=replica.reason,
        slots=replica.slots,
    )


def lease_report(value: bytes) -> LeaseReport:
    """A value of the `leases` bucket."""
    lease = decode(NodeLease, value)
    return LeaseReport(
        ready=lease.ready,
        in_flight=lease.in_flight,
        finished_count=lease.finished_count,
        failed_count=lease.failed_count,
        agent_run_id=lease.agent_run_id,
    )


def gateway_report(value: bytes) -> GatewayReport:
    """A value of the `gateways` bucket."""
    status = decode(GatewayStatus, value)
    loads = {load.deployment: _load(load) for load in status.loads}
    return GatewayReport(status.region, status.run_id, loads)


def _load(load: DeploymentLoad) -> LoadReport:
    counters = Counters(
        completed=load.completed_count,
        failed=load.failed_count,
        refused=load.refused_count,
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
    )
    return LoadReport(load.in_flight, load.queued, counters)


def deployment_report(value: bytes) -> DeploymentReport:
    """A value of the `deployments` bucket."""
    declared = decode(Deployment, value)
    manifest = declared.manifest
    return DeploymentReport(
        bundle=manifest.name,
        bundle_version=manifest.version,
        bundle_digest=declared.bundle_digest,
        task=_word(ModelTask.DESCRIPTOR, manifest.task),
        price_class=manifest.price_class,
        replicas=declared.replicas,
        slots_per_replica=manifest.slots,
        regions=tuple(declared.regions),
        tenants=tuple(declared.tenants),
        max_replicas=declared.max_replicas,
    )


def route_report(value: bytes) -> RouteReport:
    """A value of the `routes` bucket."""
    route = decode(Route, value)
    targets = tuple(
        TargetReport(target.region, target.ready_slots, target.ready_replicas)
        for target in route.targets
    )
    return RouteReport(targets, route.unready_reason)


def wanted_deployments(value: bytes) -> frozenset[str]:
    """A value of the `placements` bucket: what the node must hold."""
    placement = decode(NodePlacement, value)
    return frozenset(assignment.deployment for assignment in placement.replicas)


def _word(enum: EnumDescriptor, value: int) -> str:
    """`NODE_STATE_READY` as "ready"; a number that a newer service sends as itself."""
    known = enum.values_by_number.get(value)
    if known is None:
        return str(value)
    word = known.name.removeprefix(f"{_upper_snake(enum.name)}_").lower()
    return "unknown" if word == "unspecified" else word


def _upper_snake(camel: str) -> str:
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(camel)).upper()
