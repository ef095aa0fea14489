"""What is left of every node and site while a plan is made, and what has been put where.

Numbers stand in arrays over the nodes, ordered by key, because a plan for thousands of
nodes asks "which of them" a thousand times; see docs/decisions/0027.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator
from collections.abc import Set as AbstractSet
from copy import copy

import numpy as np

from busbar_scheduler.domain import economy
from busbar_scheduler.domain.arrays import Fleet, Indices, Mask
from busbar_scheduler.domain.fleet import Deployment

NO_LIMIT = 2**60
_TIGHTNESS_SCALE, _TIGHTNESS_MAX = 1_024, 2_047


class Packing:
    """Room left, and replicas put."""

    def __init__(self, fleet: Fleet) -> None:
        nodes = fleet.nodes
        self.fleet = fleet
        self.memory_mib = np.array([node.memory_mib for node in nodes], dtype=np.int64)
        self.slots = np.array([node.slots for node in nodes], dtype=np.int64)
        self.power_w = np.array([node.power_cap_w or NO_LIMIT for node in nodes], dtype=np.int64)
        self.site_power_w = np.array(
            [site.power_cap_w or NO_LIMIT for site in fleet.sites], dtype=np.int64
        )
        self.on_node: list[dict[str, Deployment]] = [{} for _ in nodes]
        self.open = fleet.takes_new
        """Nodes that are looked at for more."""
        self.worth_nanos = 0
        """Revenue less costs of what was taken less what was released, an hour."""
        self._held: dict[str, dict[int, None]] = {}
        self._own = set(range(len(nodes)))
        """Nodes of whose replicas no other packing reads; others are copied before a change."""
        self._trail: list[tuple[int, Deployment, bool]] = []
        self._costs: dict[str, Indices] = {}
        self._masks: dict[tuple[tuple[str, ...], tuple[str, ...]], Mask] = {}
        self._whole = self.memory_mib.copy(), self.slots.copy()
        self._set_units()

    # --- what is there -----------------------------------------------------------------------

    def held(self, name: str) -> list[int]:
        """Nodes that hold a deployment, in the order in which they got it."""
        return list(self._held.get(name, ()))

    def count(self, name: str) -> int:
        """Replicas of a deployment."""
        return len(self._held.get(name, ()))

    def names(self) -> AbstractSet[str]:
        """Deployments that are held, or were."""
        return self._held.keys()

    def on(self, node: str) -> list[Deployment]:
        """What a node is given, by its key."""
        return list(self.on_node[self.fleet.index[node]].values())

    def per_site(self, name: str) -> Indices:
        """Replicas of a deployment by site."""
        at = np.fromiter(self._held.get(name, ()), dtype=np.int64)
        return np.bincount(self.fleet.site[at], minlength=len(self.fleet.sites))

    def load(self, earlier: Packing, names: Iterable[str]) -> None:
        """Put replicas where an earlier plan had them; what they are worth is not counted."""
        index, on_node, nodes_of = self.fleet.index, self.on_node, earlier.fleet.nodes
        at, put = list[int](), list[Deployment]()
        for name in names:
            held = earlier.held(name)
            nodes = [index[nodes_of[one].key] for one in held]
            self._held[name] = dict.fromkeys(nodes)
            for node, then in zip(nodes, held, strict=True):
                deployment = on_node[node][name] = earlier.on_node[then][name]
                put.append(deployment)
            at += nodes
        self._put_all(at, put, -1)

    def after(self, fleet: Fleet, names: Container[str]) -> Packing:
        """Only these deployments where they are, on the same nodes in another state.

        As a new packing into which they were loaded, without looking at every node.
        """
        made = copy(self)
        self._own = set()
        made._stand_alone(fleet, names)  # noqa: SLF001 # of our own kind
        return made

    def _stand_alone(self, fleet: Fleet, names: Container[str]) -> None:
        """Share nothing that changes with the packing that this is a copy of."""
        before, held = self.fleet, self._held
        self.fleet, self.open, self.worth_nanos = fleet, fleet.takes_new, 0
        self.memory_mib, self.slots = self.memory_mib.copy(), self.slots.copy()
        self.power_w, self.site_power_w = self.power_w.copy(), self.site_power_w.copy()
        self.on_node, self._own = list(self.on_node), set()
        self._trail, self._costs = [], {}
        self._held = {name: dict(nodes) for name, nodes in held.items() if name in names}
        at, taken = list[int](), list[Deployment]()
        for name in held.keys() - self._held.keys():
            at += held[name]
            taken += [self._there(node).pop(name) for node in held[name]]
        self._put_all(at, taken, 1)
        self._measure(before)

    def _measure(self, before: Fleet) -> None:
        """Nodes and sites may have more than before, or less."""
        for at, (site, then) in enumerate(zip(self.fleet.sites, before.sites, strict=True)):
            if site is not then:
                more_w = (site.power_cap_w or NO_LIMIT) - (then.power_cap_w or NO_LIMIT)
                self.site_power_w[at] += more_w
        self._whole = self._whole[0].copy(), self._whole[1].copy()
        for at in self.fleet.moved(before):
            node, then = self.fleet.nodes[at], before.nodes[at]
            memory_mib, slots = node.memory_mib - then.memory_mib, node.slots - then.slots
            self.memory_mib[at] += memory_mib
            self._whole[0][at] += memory_mib
            self.slots[at] += slots
            self._whole[1][at] += slots
            self.power_w[at] += (node.power_cap_w or NO_LIMIT) - (then.power_cap_w or NO_LIMIT)
        self._set_units()

    def _set_units(self) -> None:
        memory_mib, slots = self._whole
        self._largest = int(memory_mib.max(initial=1)), int(slots.max(initial=1))
        self._memory_unit, self._slots_unit = (
            max(1, most // _TIGHTNESS_SCALE) for most in self._largest
        )

    def touched(self) -> frozenset[str]:
        """Deployments of which anything was taken or released."""
        return frozenset(deployment.name for _, deployment, _ in self._trail)

    def take(self, node: int, deployment: Deployment) -> None:
        """Put a replica on a node; the caller knows that it fits."""
        self._trail.append((node, deployment, True))
        self._take(node, deployment)

    def leave(self, node: int, deployment: Deployment) -> None:
        """Let a replica stay where it is; as with `load`, what it is worth is not counted."""
        self._trail.append((node, deployment, True))
        self._hold(node, deployment)

    def release(self, node: int, deployment: Deployment) -> None:
        """Take it away again."""
        self._trail.append((node, deployment, False))
        self._release(node, deployment)

    def mark(self) -> int:
        """Where we are, for `undo`."""
        return len(self._trail)

    def moved_since(self, mark: int) -> bool:
        """Whether anything was taken away again since `mark`."""
        return not all(taken for _, _, taken in self._trail[mark:])

    def undo(self, mark: int) -> None:
        """Take back everything since `mark`."""
        while len(self._trail) > mark:
            node, deployment, taken = self._trail.pop()
            if taken:
                self._release(node, deployment)
            else:
                self._take(node, deployment)

    def _take(self, node: int, deployment: Deployment) -> None:
        self.worth_nanos += self._gain(node, deployment)
        self._hold(node, deployment)

    def _hold(self, node: int, deployment: Deployment) -> None:
        self._put(node, deployment, -1)
        self._there(node)[deployment.name] = deployment
        self._held.setdefault(deployment.name, {})[node] = None

    def _release(self, node: int, deployment: Deployment) -> None:
        self._put(node, deployment, 1)
        del self._there(node)[deployment.name]
        del self._held[deployment.name][node]
        self.worth_nanos -= self._gain(node, deployment)

    def _there(self, node: int) -> dict[str, Deployment]:
        if node not in self._own:
            self._own.add(node)
            self.on_node[node] = dict(self.on_node[node])
        return self.on_node[node]

    def _put(self, node: int, deployment: Deployment, sign: int) -> None:
        need = deployment.manifest
        self.memory_mib[node] += sign * need.memory_mib
        self.slots[node] += sign * need.slots
        if need.power_w:
            self.power_w[node] += sign * need.power_w
            self.site_power_w[self.fleet.site[node]] += sign * need.power_w

    def _put_all(self, at: list[int], deployments: list[Deployment], sign: int) -> None:
        """As `_put` for each, and quicker for many."""
        if not at:
            return
        manifests = [one.manifest for one in deployments]
        needs = [(one.memory_mib, one.slots, one.power_w) for one in manifests]
        nodes, need = np.array(at, dtype=np.int64), sign * np.array(needs, dtype=np.int64)
        np.add.at(self.memory_mib, nodes, need[:, 0])
        np.add.at(self.slots, nodes, need[:, 1])
        np.add.at(self.power_w, nodes, need[:, 2])
        np.add.at(self.site_power_w, self.fleet.site[nodes], need[:, 2])

    # --- where more would fit ----------------------------------------------------------------

    def allowed(self, deployment: Deployment) -> Mask:
        """Nodes it may run on, whatever room there is."""
        key = (deployment.regions, deployment.pins)
        if key not in self._masks:
            allowed = [deployment.may_run_on(node) for node in self.fleet.nodes]
            self._masks[key] = np.array(allowed, dtype=np.bool_)
        return self._masks[key]

    def fitting(self, deployment: Deployment) -> Indices:
        """Nodes that could take a replica now; limits per site and feeder are not asked."""
        need = deployment.manifest
        mask = self.allowed(deployment) & self.open
        mask &= self.memory_mib >= need.memory_mib
        mask &= self.slots >= need.slots
        if need.power_w:
            mask &= self.power_w >= need.power_w
            mask &= (self.site_power_w >= need.power_w)[self.fleet.site]
        if deployment.digest in self.fleet.suspended:
            mask[:] = False
        mask[list(self.fleet.avoided.get(deployment.digest, ()))] = False
        held = self._held.get(deployment.name)
        if held:
            mask[list(held)] = False
        return np.flatnonzero(mask)

    def within_limits(self, deployment: Deployment) -> Mask:
        """Nodes whose site and feeder may hold one more of it."""
        fleet, held = self.fleet, self.held(deployment.name)
        mask = np.ones(len(fleet.nodes), dtype=np.bool_)
        if deployment.per_site_max:
            mask &= (self.per_site(deployment.name) < deployment.per_site_max)[fleet.site]
        if deployment.per_feeder_max:
            size = int(fleet.feeder.max(initial=0)) + 1
            there = np.bincount(fleet.feeder[np.array(held, dtype=np.int64)], minlength=size)
            mask &= (there < deployment.per_feeder_max)[fleet.feeder]
        return mask

    def homes(self, deployment: Deployment) -> int:
        """On how many nodes it is or could be, if nothing else were there."""
        need = deployment.manifest
        mask = self.allowed(deployment) & self.fleet.takes_new
        mask &= (self._whole[0] >= need.memory_mib) & (self._whole[1] >= need.slots)
        mask[self.held(deployment.name)] = True
        return int(mask.sum())

    def movable(self) -> tuple[int, int]:
        """Memory and slots of nodes that take more, and of what other nodes hold."""
        takes = self.fleet.takes_new
        totals = [int(whole[takes].sum()) for whole in self._whole]
        for node in np.flatnonzero(~takes):
            for one in self.on_node[node].values():
                totals[0] += one.manifest.memory_mib
                totals[1] += one.manifest.slots
        return totals[0], totals[1]

    @contextlib.contextmanager
    def overlooking(self, nodes: list[int]) -> Iterator[None]:
        """Within the context nothing more is put on these nodes."""
        self.open = self.fleet.takes_new.copy()
        self.open[nodes] = False
        try:
            yield
        finally:
            self.open = self.fleet.takes_new

    def fits(self, node: int, deployment: Deployment) -> bool:
        """Whether one node has the room; whether it takes anything new is not asked."""
        return not self.shortage(node, deployment)

    def shortage(self, node: int, deployment: Deployment) -> str:
        """What one node lacks; empty when nothing."""
        need = deployment.manifest
        if deployment.name in self.on_node[node]:
            return "already holds a replica"
        if need.memory_mib > self.memory_mib[node]:
            return f"{self.memory_mib[node]} of {need.memory_mib} MiB free"
        if need.slots > self.slots[node]:
            return f"{self.slots[node]} of {need.slots} slots free"
        if need.power_w > self.power_w[node]:
            return f"{self.power_w[node]} of {need.power_w} W free"
        site = self.fleet.site[node]
        if need.power_w > self.site_power_w[site]:
            return f"{self.site_power_w[site]} of {need.power_w} W free at its site"
        return ""

    def tightness(self, nodes: Indices) -> Indices:
        """Smaller is tighter: what is left there now, in parts of the largest node; < 4096."""
        memory = self.memory_mib[nodes] // self._memory_unit
        slots = self.slots[nodes] // self._slots_unit
        return np.minimum(memory, _TIGHTNESS_MAX) + np.minimum(slots, _TIGHTNESS_MAX)

    def share(self, deployment: Deployment) -> float:
        """How much of a largest node one replica takes: of what it takes most of."""
        need = deployment.manifest
        return max(need.memory_mib / self._largest[0], need.slots / self._largest[1], 1e-9)

    # --- what it costs -----------------------------------------------------------------------

    def costs(self, deployment: Deployment) -> Indices:
        """What a replica costs on each node, nanos an hour: power, and moving if it is new.

        Where nothing has a price it is the seconds that loading takes.
        """
        name = deployment.name
        if name not in self._costs:
            self._costs[name] = self._all_costs(deployment)
        return self._costs[name]

    def _all_costs(self, deployment: Deployment) -> Indices:
        fleet = self.fleet
        before = list(fleet.before.get(deployment.name, ()))
        seconds = np.full(len(fleet.nodes), economy.loading_s(deployment, cached=False))
        seconds[list(fleet.cached.get(deployment.digest, ()))] = economy.loading_s(
            deployment, cached=True
        )
        by_site = [economy.energy_nanos_per_h(deployment, site) for site in fleet.sites]
        energy = np.array(by_site, dtype=np.int64)[fleet.site]
        busy = economy.busy_nanos_per_h(deployment, fleet.demands.get(deployment.name))
        if not busy and not energy.any():
            seconds[before] = 0
            return seconds
        costs = energy + economy.moving_nanos(energy, busy, seconds)
        costs[before] = energy[before] - economy.staying_nanos(energy[before])
        return costs

    def _gain(self, node: int, deployment: Deployment) -> int:
        """What one more replica there brings in beyond its costs."""
        cost_nanos = int(self.costs(deployment)[node])
        demand = self.fleet.demands.get(deployment.name)
        if demand is None or not deployment.value_nanos_per_request:
            return -cost_nanos
        there = self.count(deployment.name)
        before_nanos = economy.revenue_nanos_per_h(deployment, demand, there)
        after_nanos = economy.revenue_nanos_per_h(deployment, demand, there + 1)
        return after_nanos - before_nanos - cost_nanos
