"""The best placement there is, by a mixed-integer programme (HiGHS), to measure plans against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import highspy
from busbar_scheduler.domain import economy
from busbar_scheduler.domain.fleet import Deployment, Node, Snapshot
from small_fleets import Held


@dataclass(frozen=True)
class Optimum:
    """What the programme found."""

    worth_nanos: int
    held: Held


def true_cost_nanos(snapshot: Snapshot, deployment: Deployment, node: Node) -> int:
    """Power, and moving when the replica was not there."""
    energy = economy.energy_nanos_per_h(deployment, snapshot.site_of(node))
    told = snapshot.placements.get(node.key, ())
    if any(one.deployment == deployment.name for one in told):
        return energy
    cached = any(one.digest == deployment.digest for one in node.replicas)
    busy = economy.busy_nanos_per_h(deployment, snapshot.demands.get(deployment.name))
    seconds = economy.loading_s(deployment, cached=cached)
    return energy + economy.moving_nanos(energy, busy, seconds)


def worth_nanos(snapshot: Snapshot, held: Held) -> int:
    """What the objective says of a placement."""
    total, nodes = 0, {node.key: node for node in snapshot.nodes}
    for deployment in snapshot.deployments:
        at, demand = held.get(deployment.name, set()), snapshot.demands.get(deployment.name)
        total += economy.revenue_nanos_per_h(deployment, demand, len(at))
        total -= sum(true_cost_nanos(snapshot, deployment, nodes[key]) for key in at)
    return total


_SCALE = 1e-6
"""Nanos to a size that a solver likes."""


class _Programme:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.solver = highspy.Highs()
        self.solver.silent()
        self.solver.setOptionValue("threads", 1)
        self.solver.setOptionValue("time_limit", 20.0)
        self.x: dict[tuple[str, str], Any] = {}
        self.objective: list[Any] = []

    def build(self) -> None:
        for deployment in self.snapshot.deployments:
            self._replicas(deployment)
        needs = {one.name: one.manifest for one in self.snapshot.deployments}
        sites = defaultdict[str, list[Node]](list)
        for node in self.snapshot.nodes:
            sites[node.site_key].append(node)
            there = [(name, x) for (name, key), x in self.x.items() if key == node.key]
            self._at_most(((needs[n].memory_mib, x) for n, x in there), node.memory_mib)
            self._at_most(((needs[n].slots, x) for n, x in there), node.slots)
            if node.power_cap_w:
                self._at_most(((needs[n].power_w, x) for n, x in there), node.power_cap_w)
        for nodes in sites.values():
            keys, cap_w = {node.key for node in nodes}, self.snapshot.site_of(nodes[0]).power_cap_w
            if cap_w:
                there = [(n, x) for (n, key), x in self.x.items() if key in keys]
                self._at_most(((needs[n].power_w, x) for n, x in there), cap_w)

    def _replicas(self, deployment: Deployment) -> None:
        solver, demand = self.solver, self.snapshot.demands.get(deployment.name)
        groups = defaultdict[str, list[Any]](list)
        feeders = defaultdict[str, list[Any]](list)
        here = list[Any]()
        for node in self.snapshot.nodes:
            if not (deployment.may_run_on(node) and node.takes_new):
                continue
            x = self.x[deployment.name, node.key] = solver.addBinary()
            here.append(x)
            groups[node.site_key].append(x)
            site = self.snapshot.site_of(node)
            feeders[node.feeder or site.feeder or site.key].append(x)
            cost = true_cost_nanos(self.snapshot, deployment, node)
            self.objective.append(-cost * _SCALE * x)
        total = solver.qsum(here)
        wanted = self.snapshot.wanted(deployment)
        for limit, found in (
            (deployment.per_site_max, groups),
            (deployment.per_feeder_max, feeders),
        ):
            for xs in found.values() if limit else ():
                solver.addConstr(solver.qsum(xs) <= limit)
        if deployment.survives_site_loss:
            for xs in groups.values():
                solver.addConstr(total - solver.qsum(xs) >= deployment.replicas)
        else:
            solver.addConstr(total <= wanted)
        solver.addConstr(total >= deployment.replicas)
        served = [economy.revenue_nanos_per_h(deployment, demand, n) for n in range(wanted + 1)]
        steps = [solver.addVariable(0, 1) for _ in range(wanted)]
        if steps:
            solver.addConstr(solver.qsum(steps) <= total)
        for at, y in enumerate(steps):
            self.objective.append((served[at + 1] - served[at]) * _SCALE * y)
        self.objective.append(served[0] * _SCALE)

    def _at_most(self, terms: Iterable[tuple[int, Any]], limit: int) -> None:
        terms = list(terms)
        if terms:
            self.solver.addConstr(self.solver.qsum(need * x for need, x in terms) <= limit)


def optimum(snapshot: Snapshot) -> Optimum | None:
    """The best placement that keeps every promise; None when there is none."""
    programme = _Programme(snapshot)
    programme.build()
    solver = programme.solver
    solver.maximize(solver.qsum(programme.objective))
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return None
    assert status == highspy.HighsModelStatus.kOptimal, status
    held = defaultdict[str, set[str]](set)
    for (name, key), x in programme.x.items():
        if solver.val(x) > 0.5:
            held[name].add(key)
    return Optimum(worth_nanos(snapshot, held), dict(held))
