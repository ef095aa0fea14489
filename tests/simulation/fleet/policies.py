"""What decides where models run: Busbar's scheduler, and two simpler ways to compare it with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from busbar_scheduler.domain.autoscaling import Autoscaler
from busbar_scheduler.domain.demand import Asked
from busbar_scheduler.domain.fleet import (
    Assignment,
    Demand,
    Deployment,
    Health,
    Node,
    Placements,
    Routes,
    Snapshot,
)
from busbar_scheduler.domain.planning import Plan, assignment_of, plan
from busbar_scheduler.domain.routing import route_of
from busbar_scheduler.usecases.cycle import Planner


@dataclass(frozen=True, slots=True)
class Decided:
    """What every node shall hold and how every deployment is reached."""

    placements: Placements
    routes: Routes
    short: Mapping[str, int]
    """Promised replicas that have no place, as the one who decided says."""


class Policy(Protocol):
    """Decides on placements."""

    name: str
    not_promised: frozenset[str]
    """What it does not even try to keep."""

    def look(self, snapshot: Snapshot, asked: Mapping[str, Asked], now: float) -> bool:
        """Be told what is asked; whether that may change something. The snapshot has no nodes."""
        ...

    def decide(self, snapshot: Snapshot, now: float) -> Decided:
        """Decide on what is there."""
        ...

    def restarted(self) -> None:
        """Another one leads, who knows nothing of what was before."""
        ...


_EPOCH_S = 1_800_000_000
_LOOKS_EVERY_S = 10.0
"""How often watermarks are looked at; Busbar looks each second."""
_SPARES = frozenset({"N+1", "survives a site"})


# --- how many --------------------------------------------------------------------------------


@dataclass(slots=True)
class Watermarks:
    """As many replicas as what is asked now needs: up at once, down when it stays low."""

    deployments: Mapping[str, Deployment]
    busy_ratio: float = 0.7
    """How busy slots should be."""
    down_after_s: float = 120.0
    wanted: dict[str, int] = field(default_factory=dict[str, int])
    _low_since: dict[str, float] = field(default_factory=dict[str, float])
    _looked_at: float = float("-inf")

    def look(self, loads: Mapping[str, Asked], now: float) -> bool:
        """Follow what is asked; whether another number is wanted."""
        if now - self._looked_at < _LOOKS_EVERY_S:
            return False
        self._looked_at = now
        before = dict(self.wanted)
        for name, load in loads.items():
            deployment = self.deployments[name]
            asked = (load.in_flight + load.queued) / self.busy_ratio
            needed = math.ceil(asked / deployment.manifest.slots)
            needed = max(deployment.replicas, min(deployment.most, needed))
            current = self.wanted.get(name, deployment.replicas)
            if needed >= current:
                self._low_since.pop(name, None)
                self.wanted[name] = needed
            elif now - self._low_since.setdefault(name, now) >= self.down_after_s:
                self._low_since[name] = now
                self.wanted[name] = current - 1
        return self.wanted != before


# --- Busbar ----------------------------------------------------------------------------------


class Busbar:
    """Production's planner, and production's way to know what is wanted."""

    name = "busbar"
    not_promised = frozenset[str]()

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._planner = Planner(now_s)
        self._now_s = now_s
        self._autoscaler = Autoscaler()

    def restarted(self) -> None:
        """Another scheduler leads: it knows nothing of earlier plans."""
        self._planner, self._autoscaler = Planner(self._now_s), Autoscaler()

    def look(self, snapshot: Snapshot, asked: Mapping[str, Asked], now: float) -> bool:
        """As `Policy`."""
        before = dict(self._autoscaler.demands)
        self._autoscaler.step(snapshot, asked, now, int((_EPOCH_S + now) / 60))
        return self._autoscaler.demands != before

    def decide(self, snapshot: Snapshot, now: float) -> Decided:
        """As `Policy`."""
        made = self._planner.plan(replace(snapshot, demands=dict(self._autoscaler.demands)))
        return Decided(made.placements, made.routes, made.short)


# --- to compare with -------------------------------------------------------------------------


class Static:
    """Placed once, for the average of the day, by Busbar's own planner; never touched again."""

    name = "static"
    not_promised = _SPARES | {"who is gone is given up"}

    def __init__(self, replicas: Mapping[str, int]) -> None:
        self._replicas = replicas
        self._plan: Plan | None = None

    def look(self, snapshot: Snapshot, asked: Mapping[str, Asked], now: float) -> bool:
        """As `Policy`: it does not care."""
        return False

    def restarted(self) -> None:
        """As `Policy`: what it knows is written down."""

    def decide(self, snapshot: Snapshot, now: float) -> Decided:
        """As `Policy`."""
        if self._plan is None:
            demands = {name: Demand(count) for name, count in self._replicas.items()}
            self._plan = plan(replace(snapshot, demands=demands))
        sites = {node.site_key for node in snapshot.nodes if snapshot.site_of(node).order.empties}
        held = {
            node.key: () if node.site_key in sites else self._plan.placements.get(node.key, ())
            for node in snapshot.nodes
        }
        placements = _within_caps(snapshot, held)
        return Decided(placements, policy_routes(snapshot, placements), {})


class LeastLoaded:
    """As many as are busy now, each on the node with most room, wherever that is."""

    name = "least loaded"
    not_promised = _SPARES

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        self._watermarks = Watermarks(deployments)

    def look(self, snapshot: Snapshot, asked: Mapping[str, Asked], now: float) -> bool:
        """As `Policy`."""
        return self._watermarks.look(asked, now)

    def restarted(self) -> None:
        """As `Policy`: what it knows is written down."""

    def decide(self, snapshot: Snapshot, now: float) -> Decided:
        """As `Policy`."""
        nodes = {node.key: node for node in snapshot.nodes if node.health is not Health.LOST}
        keeps = {
            key: snapshot.placements.get(key, ()) if _keeps(snapshot, node) else ()
            for key, node in nodes.items()
        }
        held = {key: list(one) for key, one in _within_caps(snapshot, keeps).items()}
        room = _Room(snapshot, nodes, held)
        for deployment in snapshot.deployments:
            wanted = self._watermarks.wanted.get(deployment.name, deployment.replicas)
            room.bring_to(deployment, wanted)
        placements = {key: tuple(sorted(one, key=_name)) for key, one in held.items()}
        return Decided(placements, policy_routes(snapshot, placements), {})


def _keeps(snapshot: Snapshot, node: Node) -> bool:
    return node.health.keeps and not snapshot.site_of(node).order.empties


def _name(one: Assignment) -> str:
    return one.deployment


class _Room:
    """What is left where, for whoever looks for the emptiest node."""

    def __init__(
        self, snapshot: Snapshot, nodes: Mapping[str, Node], held: dict[str, list[Assignment]]
    ) -> None:
        self._held, self._keys = held, list(nodes)
        index = {key: at for at, key in enumerate(self._keys)}
        self._needs = {one.name: one.manifest for one in snapshot.deployments}
        sites = {key: at for at, key in enumerate({node.site_key: 0 for node in nodes.values()})}
        places = [snapshot.site_of(node) for node in nodes.values()]
        open_ = [node.takes_new for node in nodes.values()]
        self._open = np.array(open_) & ~np.array([one.order.empties for one in places])
        self._regions = np.array([node.region for node in nodes.values()])
        self._site = np.array([sites[one.key] for one in places])
        self._power_w = np.zeros(len(sites), np.int64)
        self._power_w[self._site] = [one.power_cap_w or 2**60 for one in places]
        self._memory_mib = np.array([node.memory_mib for node in nodes.values()])
        self._slots = np.array([node.slots for node in nodes.values()])
        self._holders = dict[str, dict[int, None]]()
        for key, on_node in held.items():
            for one in on_node:
                self._put(index[key], one.deployment)

    def bring_to(self, deployment: Deployment, wanted: int) -> None:
        """Add or remove replicas until there are that many, or there is no more room."""
        holders = list(self._holders.get(deployment.name, ()))
        for at in holders[wanted:]:
            key = self._keys[at]
            self._held[key] = [one for one in self._held[key] if one.deployment != deployment.name]
            del self._holders[deployment.name][at]
            self._use(at, deployment.name, -1)
        for _ in range(wanted - len(holders)):
            fits = self._fitting(deployment)
            if not fits.any():
                return
            best = int(np.where(fits, self._memory_mib, -1).argmax())
            self._held[self._keys[best]].append(assignment_of(deployment))
            self._put(best, deployment.name)

    def _fitting(self, deployment: Deployment) -> npt.NDArray[np.bool_]:
        need = deployment.manifest
        fits = self._open & (self._memory_mib >= need.memory_mib) & (self._slots >= need.slots)
        fits &= self._power_w[self._site] >= need.power_w
        if deployment.regions:
            fits &= np.isin(self._regions, deployment.regions)
        fits[list(self._holders.get(deployment.name, ()))] = False
        return fits

    def _put(self, at: int, deployment: str) -> None:
        self._holders.setdefault(deployment, {})[at] = None
        self._use(at, deployment, 1)

    def _use(self, at: int, deployment: str, sign: int) -> None:
        need = self._needs[deployment]
        self._memory_mib[at] -= sign * need.memory_mib
        self._slots[at] -= sign * need.slots
        self._power_w[self._site[at]] -= sign * need.power_w


def _within_caps(
    snapshot: Snapshot, held: Mapping[str, tuple[Assignment, ...]]
) -> dict[str, tuple[Assignment, ...]]:
    """Without what a site's cap does not allow any more: the last go first."""
    power_w = {one.name: one.manifest.power_w for one in snapshot.deployments}
    left_w, kept = dict[str, int](), dict[str, tuple[Assignment, ...]]()
    for node in snapshot.nodes:
        site, stay = snapshot.site_of(node), list[Assignment]()
        for one in held.get(node.key, ()):
            free_w = left_w.get(site.key, site.power_cap_w or 2**60) - power_w[one.deployment]
            if free_w >= 0:
                left_w[site.key] = free_w
                stay.append(one)
        kept[node.key] = tuple(stay)
    return kept


def policy_routes(snapshot: Snapshot, placements: Placements) -> Routes:
    holders = dict[str, list[Node]]()
    for node in snapshot.nodes:
        for one in placements.get(node.key, ()):
            holders.setdefault(one.deployment, []).append(node)
    return {
        one.name: route_of(one, holders.get(one.name, ()), snapshot.routes, None)
        for one in snapshot.deployments
    }
