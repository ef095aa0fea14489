"""What the scheduler sees: deployments wanted, nodes there, what was planned before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from busbar_scheduler.domain.manifest import Manifest
from busbar_scheduler.domain.rollouts import Canary, RolledBack, Rollout

SCALE_DOWN_AFTER_S = 300
"""Where a declaration does not say: Kubernetes' stabilization window."""


class ReplicaState(StrEnum):
    """Where a node says that a replica stands."""

    UNKNOWN = "unknown"
    FETCHING = "fetching"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Replica:
    """One model on one node, as the node reports it."""

    deployment: str
    digest: str
    state: ReplicaState
    slots: int
    reason: str = ""
    model_metadata: bytes = b""
    model_config: bytes = b""
    failed_count: int = 0
    """Failures in a row; 0 once it has served for a while."""
    crashed_count: int = 0
    """Those of them in which Triton died while it was being loaded."""


@dataclass(frozen=True, slots=True)
class Avoided:
    """A bundle that is kept off a node for a while, since it failed there."""

    digest: str
    deployment: str
    """As which it failed."""
    reason: str
    until_s: float
    """By a monotonic clock of the scheduler."""
    crashed: bool
    """Whether Triton died of it: nowhere better to be is no reason to stay then."""


class Health(StrEnum):
    """How far a node can be relied on."""

    OK = "ok"
    NOT_READY = "not ready"
    """Alive, but takes no work yet; it may be given something to load."""
    RESTARTING = "restarting"
    """Alive, but what it reported belongs to an earlier run of its agent."""
    UNREPORTED = "unreported"
    """Something is placed on it, but it has not reported yet."""
    DRAINING = "draining"
    SUSPECT = "suspect"
    EVICTED = "evicted"
    """Unusable for so long that what it held is placed elsewhere."""
    LOST = "lost"
    """Evicted, and not heard of any more."""

    @property
    def keeps(self) -> bool:
        """Whether what is placed there stays there."""
        return self not in {Health.EVICTED, Health.LOST}

    @property
    def heard(self) -> bool:
        """Whether it was surely heard of just now, so that its region's bus is there, too.

        One that was evicted because it drains may have been silent since.
        """
        return self in {Health.OK, Health.NOT_READY, Health.RESTARTING, Health.DRAINING}

    @property
    def known(self) -> bool:
        """Whether it holds what it last reported."""
        return self.heard and self is not Health.RESTARTING

    @property
    def takes_new(self) -> bool:
        """Whether more may be placed there."""
        return self in {Health.OK, Health.NOT_READY}

    @property
    def serves(self) -> bool:
        """Whether its ready replicas get work."""
        return self is Health.OK


class Order(StrEnum):
    """What the operator told a node or a site."""

    SERVE = "serve"
    CORDON = "cordon"
    """Nothing new; what is there stays."""
    DRAIN = "drain"
    """Nothing new; what is there goes as soon as it is ready elsewhere."""
    VACATE = "vacate"
    """The grace of a drain is over: what is there goes now."""
    QUARANTINE = "quarantine"
    """The scheduler found it broken: it gets no work, and what is there goes now."""

    @property
    def empties(self) -> bool:
        """Whether what is there has to go."""
        return self in {Order.DRAIN, Order.VACATE, Order.QUARANTINE}

    @property
    def serves_on(self) -> bool:
        """Whether what has to go serves until it is replaced."""
        return self not in {Order.VACATE, Order.QUARANTINE}


@dataclass(frozen=True, slots=True)
class Site:
    """Where nodes stand: what feeds them and what it costs. One that nobody described is free."""

    key: str
    """region.site"""
    power_cap_w: int = 0
    """Most that its replicas may draw together; 0 when there is no limit."""
    energy_nanos_per_kwh: int = 0
    feeder: str = ""
    """What powers it; empty when it has a feeder of its own."""
    order: Order = Order.SERVE


@dataclass(frozen=True, slots=True)
class Node:
    """One node: what it has, how it is, what it holds."""

    key: str
    region: str
    site: str
    memory_mib: int
    slots: int
    health: Health = Health.OK
    replicas: tuple[Replica, ...] = ()
    power_cap_w: int = 0
    """Most that its replicas may draw; 0 when it sets no limit of its own."""
    feeder: str = ""
    """What powers it; empty when it hangs on its site's feeder."""
    order: Order = Order.SERVE
    avoids: tuple[Avoided, ...] = ()
    """What is kept off it at present."""
    returning: bool = False
    """Whether it was given up, is back, and takes nothing new yet."""
    reads_queue_names: bool = True
    """Whether its agent pulls from the queue that it is told; those before it know one only."""

    @property
    def label(self) -> str:
        """Its name for people: region/site/node."""
        return self.key.replace(".", "/")

    @property
    def site_key(self) -> str:
        """Its site's key: region.site."""
        return f"{self.region}.{self.site}"

    @property
    def takes_new(self) -> bool:
        """Whether more may be placed there."""
        return self.order is Order.SERVE and self.health.takes_new and not self.returning

    def replica_of(self, deployment: str) -> Replica | None:
        """What it reports of a deployment."""
        for one in self.replicas:  # a generator would cost as much again, and it is asked often
            if one.deployment == deployment:
                return one
        return None

    def avoided(self, digest: str) -> Avoided | None:
        """Why a bundle is kept off it at present; None when it is not."""
        return next((one for one in self.avoids if one.digest == digest), None)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What an operator declared."""

    name: str
    digest: str
    manifest: Manifest
    replicas: int
    """Promised: what is short of them is unplaced, and said so."""
    regions: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    created_unix_ms: int = 0
    max_replicas: int = 0
    """How far demand may scale it; what is below `replicas` means that it is not scaled."""
    pins: tuple[str, ...] = ()
    """Sites (region.site) and nodes (region.site.node) it may run on; empty means all."""
    per_site_max: int = 0
    """Replicas at one site at most; 0 means any number."""
    per_feeder_max: int = 0
    """Replicas on one feeder at most; 0 means any number."""
    survives_site_loss: bool = False
    """Whether `replicas` must be left when any one site is lost."""
    value_nanos_per_request: int = 0
    """What one served request brings in; 0 when nobody said."""
    previous_digest: str = ""
    """The bundle before this one; empty when there was none."""
    scale_down_after_s: int = SCALE_DOWN_AFTER_S
    """How long less must be asked before replicas go that demand had brought."""
    rollout: Rollout | None = None
    """How new versions are tried; None: they take over when they are ready, unwatched."""
    canary: Canary | None = None
    """A version that is being tried."""
    rolled_back: RolledBack | None = None
    """The version that was tried last and given up."""

    @property
    def digests(self) -> frozenset[str]:
        """Every bundle that it serves, is tried with or may go back to."""
        tried = self.canary.digest if self.canary else ""
        return frozenset({self.digest, self.previous_digest, tried}) - {""}

    @property
    def most(self) -> int:
        """The most replicas that it may be scaled to."""
        return max(self.replicas, self.max_replicas)

    @property
    def scaled(self) -> bool:
        """Whether demand decides how many replicas it has."""
        return self.max_replicas > self.replicas

    @property
    def sleeps(self) -> bool:
        """Whether it has no replicas while nothing is asked."""
        return self.scaled and not self.replicas

    def may_run_in(self, region: str) -> bool:
        """Whether it is allowed in a region; no regions named means all."""
        return not self.regions or region in self.regions

    def may_run_on(self, node: Node) -> bool:
        """Whether it is allowed on a node, whatever room there is."""
        pinned = not self.pins or node.key in self.pins or node.site_key in self.pins
        return pinned and self.may_run_in(node.region)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A pushed model."""

    digest: str
    size_bytes: int
    manifest: Manifest
    pushed_unix_ms: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """One replica that a node must hold."""

    deployment: str
    digest: str
    slots: int
    input_tokens_output: str = ""
    output_tokens_output: str = ""
    cached_tokens_output: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Ready capacity in one region."""

    region: str
    ready_slots: int
    ready_replicas: int


@dataclass(frozen=True, slots=True)
class CanaryRoute:
    """How a deployment's version on trial is reached, and by what share of the requests."""

    track: str
    digest: str
    percent: int
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """How gateways reach a deployment."""

    deployment: str
    digest: str
    manifest: Manifest
    targets: tuple[Target, ...]
    tenants: tuple[str, ...]
    model_metadata: bytes
    model_config: bytes
    created_unix_ms: int
    unready_reason: str
    wakes_within_ms: int = 0
    """How long it takes to be ready once it is asked for; 0 when asking does not bring it back."""
    canary: CanaryRoute | None = None


Placements = Mapping[str, tuple[Assignment, ...]]
"""Node key → what it must hold, ordered by deployment."""
Routes = Mapping[str, Route]
"""Deployment → its route."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What customers are expected to ask of a deployment, and how many replicas that takes."""

    replicas: int
    """What the autoscaler wants; the declaration's bounds have been applied."""
    requests_per_h: int = 0
    requests_per_replica_h: int = 0
    """What one replica serves when it is busy all the time; 0 when it is not known."""
    loading_ms: int = 0
    """How long the first replica takes to be ready; 0 when it is not known."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a plan is made from."""

    revision: int
    """Highest revision of a declared deployment that is included."""
    deployments: tuple[Deployment, ...] = ()
    nodes: tuple[Node, ...] = ()
    placements: Placements = field(default_factory=dict[str, tuple[Assignment, ...]])
    routes: Routes = field(default_factory=dict[str, Route])
    sites: Mapping[str, Site] = field(default_factory=dict[str, Site])
    """By key; a site that is not described has no cap and costs nothing."""
    demands: Mapping[str, Demand] = field(default_factory=dict[str, Demand])
    """By deployment; one without is wanted as often as it was promised."""
    suspended: Mapping[str, str] = field(default_factory=dict[str, str])
    """Digest → why it is put on no other node at present."""

    def site_of(self, node: Node) -> Site:
        """Where a node stands."""
        return self.sites.get(node.site_key) or Site(node.site_key)

    def wanted(self, deployment: Deployment) -> int:
        """Replicas that demand and promise ask for."""
        demand = self.demands.get(deployment.name)
        return max(deployment.replicas, demand.replicas if demand else 0)
