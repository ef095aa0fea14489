"""What nodes, gateways and the scheduler say of themselves, as telemetry keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field

from busbar_telemetry.domain.rates import Counters


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One model on one node, by its agent. `state` is lower case, such as "ready"."""

    deployment: str
    bundle_digest: str
    state: str
    reason: str
    slots: int


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A node's actual state. `triton_state` is lower case, such as "ready"."""

    agent_run_id: str
    agent_version: str
    memory_mib: int
    slots: int
    gpus: tuple[str, ...]
    energy_measured: bool
    triton_state: str
    triton_reason: str
    triton_restarts: int
    draining: bool
    replicas: tuple[ReplicaReport, ...]


@dataclass(frozen=True, slots=True)
class LeaseReport:
    """A node's sign of life."""

    ready: bool
    in_flight: int
    finished_count: int
    failed_count: int
    agent_run_id: str = ""
    """Which run of the agent lives; "" when it does not say."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What one gateway carries for one deployment."""

    in_flight: int
    queued: int
    counters: Counters


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """A gateway's sign of life."""

    region: str
    run_id: str
    loads: dict[str, LoadReport] = field(default_factory=dict[str, LoadReport])


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """A declared deployment."""

    bundle: str
    bundle_version: str
    bundle_digest: str
    task: str
    price_class: str
    replicas: int
    slots_per_replica: int
    regions: tuple[str, ...]
    tenants: tuple[str, ...]
    max_replicas: int = 0


@dataclass(frozen=True, slots=True)
class TargetReport:
    """Ready capacity of a deployment in one region."""

    region: str
    ready_slots: int
    ready_replicas: int


@dataclass(frozen=True, slots=True)
class RouteReport:
    """How gateways reach a deployment."""

    targets: tuple[TargetReport, ...]
    unready_reason: str
