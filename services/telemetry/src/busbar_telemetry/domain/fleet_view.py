"""The fleet summed up for people and programs: the shape of GET /admin/v1/fleet.

Rates are per second; ages are seconds; memory is MiB. `state` of a node is "ok"
(heard of, takes work), "waiting" (heard of, Triton or models not ready),
"draining", "suspect" (silent for 4 s) or "lost" (silent for 60 s).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from busbar_telemetry.domain.events import Event
from busbar_telemetry.domain.rates import Rates


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over nodes. Capacity and load count only nodes that are heard of."""

    nodes: int = 0
    nodes_ok: int = 0
    nodes_waiting: int = 0
    nodes_draining: int = 0
    nodes_suspect: int = 0
    nodes_lost: int = 0
    slots: int = 0
    ready_slots: int = 0
    in_flight: int = 0
    memory_mib: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One model on one node; `state` is "missing" when it is wanted and not reported.

    It is "unknown" while the node is silent, or its agent began anew and has not reported.
    """

    deployment: str
    bundle_digest: str
    state: str
    reason: str
    slots: int
    wanted: bool


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node."""

    node: str
    region: str
    site: str
    name: str
    state: str
    reason: str
    heard_ago_s: float
    agent_version: str
    agent_run_id: str
    triton_state: str
    triton_reason: str
    triton_restarts: int
    memory_mib: int
    slots: int
    ready_slots: int
    in_flight: int
    finished_count: int
    failed_count: int
    gpus: list[str]
    energy_measured: bool
    replicas: list[ReplicaView]


@dataclass(frozen=True, slots=True)
class SiteView:
    """One site; `nodes` are keys into the fleet's nodes."""

    site: str
    totals: Totals
    nodes: list[str]


@dataclass(frozen=True, slots=True)
class RegionView:
    """One region's sites."""

    region: str
    totals: Totals
    sites: list[SiteView]


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One gateway; counts are since it started."""

    gateway: str
    region: str
    state: str
    heard_ago_s: float
    in_flight: int
    queued: int
    completed_count: int
    failed_count: int
    refused_count: int


@dataclass(frozen=True, slots=True)
class CapacityView:
    """Ready capacity of a deployment in one region."""

    region: str
    ready_replicas: int
    ready_slots: int


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One deployment: "ready", "partial" (fewer replicas than promised) or "unready"."""

    deployment: str
    state: str
    unready_reason: str
    bundle: str
    bundle_version: str
    bundle_digest: str
    task: str
    price_class: str
    replicas: int
    max_replicas: int
    ready_replicas: int
    ready_slots: int
    regions: list[CapacityView]
    tenants: list[str]
    queued: int
    in_flight: int
    rates_10s: Rates
    rates_60s: Rates


@dataclass(frozen=True, slots=True)
class BusView:
    """Whether telemetry itself hears anything; when it does not, states are guesses."""

    connected: bool


@dataclass(frozen=True, slots=True)
class FleetView:
    """The fleet at one moment."""

    as_of_unix_ms: int
    bus: BusView
    totals: Totals
    nodes: list[NodeView] = field(default_factory=list[NodeView])
    regions: list[RegionView] = field(default_factory=list[RegionView])
    gateways: list[GatewayView] = field(default_factory=list[GatewayView])
    deployments: list[DeploymentView] = field(default_factory=list[DeploymentView])
    events: list[Event] = field(default_factory=list[Event])
