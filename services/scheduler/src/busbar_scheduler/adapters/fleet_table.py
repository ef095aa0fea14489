"""The picture of the fleet: what the buckets said, and when nodes were last heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
from busbar_contracts.node.v1.status_pb2 import NodeClaim, NodeLease, NodeStatus
from busbar_contracts.scheduler.v1.deployment_pb2 import Deployment as DeploymentMessage
from busbar_contracts.scheduler.v1.deployment_pb2 import ModelBundle
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement
from busbar_contracts.scheduler.v1.plan_pb2 import Route as RouteMessage
from busbar_contracts.scheduler.v1.site_pb2 import Site as SiteMessage
from busbar_errors import Rejected
from busbar_messaging import topology
from busbar_messaging.dispositions import decode
from busbar_messaging.hearing import HearingClock
from busbar_messaging.topology import NodeId

from busbar_scheduler.adapters import codec
from busbar_scheduler.domain.avoiding import Avoidance
from busbar_scheduler.domain.evicting import Evictions, Returns
from busbar_scheduler.domain.fleet import (
    Assignment,
    Avoided,
    Bundle,
    Deployment,
    Health,
    Node,
    Order,
    Replica,
    Route,
    Site,
    Snapshot,
)
from busbar_scheduler.domain.health import EVICT_AFTER, Signs, judge, until_next_change_s
from busbar_scheduler.domain.orders import Described
from busbar_scheduler.domain.publishing import Published, Stamped
from busbar_scheduler.domain.quarantine import Vitals

log = structlog.get_logger()

BUCKETS = (
    topology.DEPLOYMENTS,
    topology.BUNDLES,
    topology.SITES,
    topology.PLACEMENTS,
    topology.ROUTES,
    topology.NODES,
    topology.LEASES,
)
_SUSPECT_AFTER = topology.SUSPECT_AFTER
_FORGET_AFTER_S = 600.0
"""A node that is silent for this long is dropped from the picture."""
_CLAIM_HOLDS_S = 12.0
"""A claim is repeated each 5 s for as long as it stands."""
_MEMORY_MIB_MAX, _SLOTS_MAX = 2**27, 2**20
"""More than any node has: 128 TiB. A report that claims more is not taken."""


@dataclass(frozen=True, slots=True)
class Handled:
    """Requests of a node: in hand, what became of others since its agent started, and why it takes
    no more; "" when it does.
    """

    in_flight: int = 0
    finished: int = 0
    handed_back: int = 0
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """Another run of an agent that wants the name of a node which has one."""

    run_id: str
    host: str
    holder_run_id: str
    heard_at: float


@dataclass(slots=True)
class _Life:
    """When a node was last heard of, by the clock that goes while anything is heard."""

    heard_at: float
    run_id: str = ""
    revision: int = 0
    ready: bool = True
    handled: Handled = Handled()


@dataclass(slots=True)
class _Report:
    """What a node last said that it has."""

    status: NodeStatus
    replicas: tuple[Replica, ...]
    draining_since: float | None


class FleetTable:
    """Takes bucket changes in, gives snapshots out. Times are seconds of one monotonic clock.

    Nodes and leases live in memory buckets that a restart of NATS empties, so an entry
    that vanishes there means nothing. Only silence counts, and it is counted only while
    anything is heard, so that no silence of the bus makes a node suspect.
    """

    def __init__(self) -> None:
        self.bundles: dict[str, Bundle] = {}
        self._deployments: dict[str, tuple[Deployment, int]] = {}
        self._sites: dict[str, tuple[Described, int]] = {}
        self._placements: dict[str, tuple[Assignment, ...]] = {}
        self._placement_stamps: dict[str, Stamped] = {}
        self._queues: dict[str, Mapping[str, str]] = {}
        self._routes: dict[str, Route] = {}
        self._route_stamps: dict[str, Stamped] = {}
        self._reports: dict[str, _Report] = {}
        self._lives: dict[str, _Life] = {}
        self._claims: dict[str, Claim] = {}
        self._evictions = Evictions()
        self._avoidance = Avoidance()
        self._given_up = frozenset[str]()
        self._returns = Returns()
        self._returning = frozenset[str]()
        self._nodes: dict[str, Node] = {}
        """As given out last: what is as it was is the same object, and planned as such."""
        self._hearing = HearingClock()
        self._listening_since: float | None = None
        self._due_s = float("inf")

    # --- taking in ---------------------------------------------------------------------------

    def put(self, bucket: str, key: str, value: bytes, revision: int, now: float) -> bool:
        """Take an entry in; False when it changes nothing that a plan depends on."""
        if bucket == topology.LEASES.name:
            return self._put_lease(key, value, revision, now)
        if revision < self.revision_of(bucket, key):
            return False  # our own newer write has been recorded already
        try:
            self._put_declared(bucket, key, value, revision, now)
        except (Rejected, ValueError) as error:
            log.warning("entry not understood", bucket=bucket, key=key, error=str(error))
        return bucket != topology.CLAIMS.name

    def _put_declared(self, bucket: str, key: str, value: bytes, revision: int, now: float) -> None:
        match bucket:
            case topology.DEPLOYMENTS.name:
                deployment = codec.deployment_of(decode(DeploymentMessage, value))
                self._deployments[key] = (deployment, revision)
            case topology.BUNDLES.name:
                self.bundles[key] = codec.bundle_of(decode(ModelBundle, value))
            case topology.SITES.name:
                described = codec.site_of(decode(SiteMessage, value))
                for node in described.resumed_since(self.described(key)):
                    self._avoidance.forgive(f"{key}.{node}")
                self._sites[key] = (described, revision)
            case topology.PLACEMENTS.name:
                self._placement_stamps[key] = Stamped(0, revision)
                placement = decode(NodePlacement, value)
                self._placement_stamps[key] = Stamped(placement.fencing_token, revision)
                self._placements[key] = codec.placement_of(placement)
                self._queues[key] = codec.queues_of(placement)
            case topology.ROUTES.name:
                self._route_stamps[key] = Stamped(0, revision)
                route = decode(RouteMessage, value)
                self._route_stamps[key] = Stamped(route.fencing_token, revision)
                self._routes[key] = codec.route_of(route)
            case topology.CLAIMS.name:
                claim = decode(NodeClaim, value)
                self._claims[key] = Claim(claim.agent_run_id, claim.host, claim.holder_run_id, now)
            case _:
                self._put_report(key, decode(NodeStatus, value), now)

    def _put_report(self, key: str, status: NodeStatus, now: float) -> None:
        NodeId.parse(key)  # placements are written under this name
        has = status.capacity
        if has.memory_mib > _MEMORY_MIB_MAX or has.slots > _SLOTS_MAX:
            raise Rejected(f"{key} claims {has.memory_mib} MiB and {has.slots} slots: impossible")
        before = self._reports.get(key)
        same_run = before and before.status.agent_run_id == status.agent_run_id
        since = before.draining_since if before and same_run else None
        draining_since = (since if since is not None else now) if status.draining else None
        self._reports[key] = _Report(status, codec.replicas_of(status), draining_since)
        self._lives.setdefault(key, _Life(heard_at=self._hearing.now_s))

    def _put_lease(self, key: str, value: bytes, revision: int, now: float) -> bool:
        before = self._lives.get(key)
        if before and before.revision == revision:
            return False  # read again, when the watch began anew: no sign of life
        if silent_s := self._hearing.hear(now):
            log.warning("nothing was heard: no node's silence counts", silent_s=round(silent_s, 1))
        due = self._hearing.now_s >= self._due_s
        if key == topology.PULSE:
            return due
        try:
            lease = decode(NodeLease, value)
        except Rejected as error:
            log.warning("entry not understood", bucket="leases", key=key, error=str(error))
            return due
        handled = Handled(lease.in_flight, lease.finished_count, lease.handed_back_count)
        heard_at = self._hearing.now_s
        self._lives[key] = _Life(heard_at, lease.agent_run_id, revision, lease.ready, handled)
        if before is None:
            return True
        was_silent = heard_at - before.heard_at >= _SUSPECT_AFTER.total_seconds()
        changed = (before.run_id, before.ready) != (lease.agent_run_id, lease.ready)
        return was_silent or changed or due

    def deleted(self, bucket: str, key: str) -> bool:
        """Take a deletion in; False when it changes nothing that a plan depends on."""
        match bucket:
            case topology.DEPLOYMENTS.name:
                return self._deployments.pop(key, None) is not None
            case topology.BUNDLES.name:
                return self.bundles.pop(key, None) is not None
            case topology.SITES.name:
                return self._sites.pop(key, None) is not None
            case topology.PLACEMENTS.name:
                self._placements.pop(key, None)
                self._queues.pop(key, None)
                return self._placement_stamps.pop(key, None) is not None
            case topology.ROUTES.name:
                self._routes.pop(key, None)
                return self._route_stamps.pop(key, None) is not None
            case _:
                return False

    def revision_of(self, bucket: str, key: str) -> int:
        """The revision of an entry that was recorded last; 0 when there is none."""
        match bucket:
            case topology.DEPLOYMENTS.name:
                return self._deployments[key][1] if key in self._deployments else 0
            case topology.SITES.name:
                return self._sites[key][1] if key in self._sites else 0
            case topology.PLACEMENTS.name:
                return self._placement_stamps[key].revision if key in self._placement_stamps else 0
            case topology.ROUTES.name:
                return self._route_stamps[key].revision if key in self._route_stamps else 0
            case _:
                return 0

    # --- listening ---------------------------------------------------------------------------

    def listening(self) -> None:
        """From now on every change is heard, as far as anything is."""
        if self._listening_since is None:
            self._listening_since = self._hearing.now_s

    @property
    def settled(self) -> bool:
        """Whether every node we know of has had the time to show that it is alive."""
        since = self._listening_since
        if since is None:
            return False
        if self._hearing.now_s - since >= _SUSPECT_AFTER.total_seconds():
            return True
        lives = [self._lives.get(key) for key in {*self._reports, *self._placement_stamps}]
        return all(life and life.run_id and life.heard_at > since for life in lives)

    # --- giving out --------------------------------------------------------------------------

    def deployment(self, name: str) -> Deployment | None:
        """A declared deployment."""
        found = self._deployments.get(name)
        return found[0] if found else None

    def declared(self) -> tuple[Deployment, ...]:
        """Every deployment."""
        return tuple(deployment for deployment, _ in self._deployments.values())

    def described(self, site: str) -> Described:
        """A site as the operator described it; the plainest one when nobody did."""
        found = self._sites.get(site)
        return found[0] if found else Described(Site(site))

    def drain_within_ms(self, node: str) -> int:
        """How long what leaves a node may finish; 0 when it was not told to drain."""
        region, site, name = node.split(".")
        described = self.described(f"{region}.{site}")
        told = [one for one in (described.told, described.nodes.get(name)) if one]
        return min((one.drain_within_ms for one in told if one.drain_within_ms), default=0)

    def vitals(
        self, now: float, lost: Mapping[str, int], garbled: Mapping[str, int]
    ) -> dict[str, Vitals]:
        """How every node is, with what gateways hold against it."""
        return {
            key: Vitals(
                run_id=report.status.agent_run_id,
                well=judge(self._signs(key, now), _SUSPECT_AFTER) is Health.OK,
                lost_count=lost.get(key, 0),
                garbled_count=garbled.get(key, 0),
                tritons_lost=report.status.triton_restarts,
                triton_reason=report.status.triton_reason,
            )
            for key, report in self._reports.items()
        }

    def handled(self, node: str) -> Handled:
        """What a node last said of its requests."""
        life, report = self._lives.get(node), self._reports.get(node)
        refusal = report.status.refusal if report else ""
        return replace(life.handled if life else Handled(), refusal=refusal)

    def claim(self, node: str, now: float) -> Claim | None:
        """Who else wants to be this node at present."""
        found = self._claims.get(node)
        return found if found and now - found.heard_at < _CLAIM_HOLDS_S else None

    def snapshot(self, now: float, now_unix_ms: int = 0) -> Snapshot:
        """Everything a plan is made from, as it is now."""
        self._forget()
        keys = sorted({*self._reports, *self._placement_stamps})
        self._give_up(keys)
        before = self._nodes
        reported = {key: one.replicas for key, one in self._reports.items()}
        avoided = self._avoidance.look(reported, now)
        self._nodes = {key: self._node(key, avoided.get(key, ()), now, now_unix_ms) for key in keys}
        self._nodes |= {key: one for key, one in before.items() if one == self._nodes.get(key)}
        return Snapshot(
            revision=max((revision for _, revision in self._deployments.values()), default=0),
            deployments=self.declared(),
            nodes=tuple(self._nodes.values()),
            placements=dict(self._placements),
            routes=dict(self._routes),
            sites={key: one.site_at(now_unix_ms) for key, (one, _) in self._sites.items()},
            suspended=self._avoidance.suspended,
        )

    def published(self) -> Published:
        """What stands in the buckets, and who wrote it."""
        return Published(
            placements=dict(self._placements),
            routes=dict(self._routes),
            placement_stamps=dict(self._placement_stamps),
            route_stamps=dict(self._route_stamps),
            queues=dict(self._queues),
        )

    def until_next_change_s(self, now: float) -> float:
        """Seconds until silence alone can change the picture; whether it does is heard."""
        keys = {*self._reports, *self._placement_stamps}
        waits = (until_next_change_s(self._signs(key, now), _SUSPECT_AFTER) for key in keys)
        self._due_s = self._hearing.now_s + min(waits, default=float("inf"))
        wait_s = self._hearing.shows_at_s(self._due_s) - now
        return wait_s if wait_s > 0 else float("inf")

    def _node(
        self,
        key: str,
        avoids: tuple[Avoided, ...],
        now: float,
        now_unix_ms: int,
    ) -> Node:
        region, site, name = key.split(".")
        told = self.described(f"{region}.{site}").nodes.get(name)
        report = self._reports.get(key)
        capacity = report.status.capacity if report else None
        return Node(
            key=key,
            region=region,
            site=site,
            memory_mib=capacity.memory_mib if capacity else 0,
            slots=capacity.slots if capacity else 0,
            health=judge(self._signs(key, now), _SUSPECT_AFTER),
            replicas=report.replicas if report else (),
            order=told.at(now_unix_ms) if told else Order.SERVE,
            avoids=avoids,
            returning=key in self._returning,
            reads_queue_names=report.status.reads_queue_names if report else True,
        )

    def _signs(self, key: str, now: float) -> Signs:
        life = self._lives.setdefault(key, _Life(heard_at=self._hearing.now_s))
        report = self._reports.get(key)
        since = report.draining_since if report else None
        return Signs(
            silent_s=self._hearing.now_s - life.heard_at,
            draining_s=now - since if since is not None else None,
            reported=report is not None,
            ready=life.ready,
            same_run=report is None or life.run_id in {"", report.status.agent_run_id},
            given_up=key in self._given_up,
        )

    def _give_up(self, keys: Sequence[str]) -> None:
        """Decide which of the nodes that are gone lose what they hold."""
        now = self._hearing.now_s
        horizon = now - EVICT_AFTER.total_seconds()
        overdue = {
            key: now - life.heard_at
            for key in keys
            if (life := self._lives.get(key)) and life.heard_at <= horizon
        }
        holding = [key for key in overdue if self._placements.get(key)]
        self._given_up = self._evictions.look(overdue, keys, holding, now)
        heard = [key for key in keys if key in self._lives and key not in overdue]
        self._returning = self._returns.look(self._given_up, heard, now)

    def _forget(self) -> None:
        horizon = self._hearing.now_s - _FORGET_AFTER_S
        for key in [key for key, life in self._lives.items() if life.heard_at < horizon]:
            del self._lives[key]
            self._reports.pop(key, None)
            self._claims.pop(key, None)
