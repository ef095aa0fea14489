"""What the scheduler sees: deployments wanted, nodes there, what was planned before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from busbar_scheduler.domain.manifest import Manifest


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
    def takes_new(self) -> bool:
        """Whether more may be placed there."""
        return self in {Health.OK, Health.NOT_READY}

    @property
    def serves(self) -> bool:
        """Whether its ready replicas get work."""
        return self is Health.OK


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

    @property
    def label(self) -> str:
        """Its name for people: region/site/node."""
        return self.key.replace(".", "/")

    def replica_of(self, deployment: str) -> Replica | None:
        """What it reports of a deployment."""
        return next((one for one in self.replicas if one.deployment == deployment), None)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What an operator declared."""

    name: str
    digest: str
    manifest: Manifest
    replicas: int
    regions: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    created_unix_ms: int = 0

    def may_run_in(self, region: str) -> bool:
        """Whether it is allowed in a region; no regions named means all."""
        return not self.regions or region in self.regions


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


@dataclass(frozen=True, slots=True)
class Target:
    """Ready capacity in one region."""

    region: str
    ready_slots: int
    ready_replicas: int


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


Placements = Mapping[str, tuple[Assignment, ...]]
"""Node key → what it must hold, ordered by deployment."""
Routes = Mapping[str, Route]
"""Deployment → its route."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a plan is made from."""

    revision: int
    """Highest revision of a declared deployment that is included."""
    deployments: tuple[Deployment, ...] = ()
    nodes: tuple[Node, ...] = ()
    placements: Placements = field(default_factory=dict[str, tuple[Assignment, ...]])
    routes: Routes = field(default_factory=dict[str, Route])
