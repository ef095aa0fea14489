"""From a snapshot to a plan: served revenue - energy - moving, under what may never happen.

Promised replicas come first, whatever they cost. What runs stays where it is unless
moving it saves more than it costs; see docs/decisions/0027.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property

from busbar_scheduler.domain.arrays import differing
from busbar_scheduler.domain.attempting import Attempt, attempt
from busbar_scheduler.domain.decisions import Decision, Verdict, decide, forgotten
from busbar_scheduler.domain.displacing import displaced, rewired
from busbar_scheduler.domain.fleet import (
    Assignment,
    Deployment,
    Health,
    Placements,
    Route,
    Routes,
    Snapshot,
)
from busbar_scheduler.domain.packing import Packing
from busbar_scheduler.domain.routing import route_of

_ROUNDS_MAX = 4
"""A plan is planned again from its own outcome until it stays the same, so often at most."""


@dataclass(frozen=True)
class Plan:
    """What every node must hold and how every deployment is reached."""

    revision: int
    placements: Placements
    routes: Routes
    by_deployment: Mapping[str, tuple[Decision, ...]]
    forgotten: tuple[Decision, ...]
    """Replicas that go because their node or their deployment did."""
    short: Mapping[str, int]
    """Deployment → promised replicas without a place; of N+1, those that a site's loss takes."""
    unsettled: frozenset[str]
    """Deployments of which something is not as it was, or not as it should be."""
    packing: Packing = field(compare=False, repr=False)
    """What is left where, for those who ask why."""
    snapshot: Snapshot = field(compare=False, repr=False)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided on every replica, by deployment and node."""
        every = [*(one for all_ in self.by_deployment.values() for one in all_), *self.forgotten]
        return tuple(sorted(every, key=lambda one: (one.deployment, one.node, one.verdict)))

    def decisions_on(self, deployment: str) -> tuple[Decision, ...]:
        """What was decided on one deployment."""
        gone = tuple(one for one in self.forgotten if one.deployment == deployment)
        return self.by_deployment.get(deployment, ()) + gone

    def nodes_of(self, deployment: str) -> list[str]:
        """Where a deployment has its replicas, those included that are leaving."""
        return [self.packing.fleet.nodes[at].key for at in self.packing.held(deployment)]

    @property
    def changed(self) -> Iterable[Decision]:
        """What is not as it was."""
        every = [*(one for all_ in self.by_deployment.values() for one in all_), *self.forgotten]
        return (one for one in every if one.verdict is not Verdict.KEPT)


def plan(snapshot: Snapshot) -> Plan:
    """Decide. Deterministic, and a plan that was carried out is planned again unchanged."""
    return _plan(snapshot, None, frozenset())


def replan(before: Plan, snapshot: Snapshot) -> Plan:
    """Decide again where something changed; what did not change stays, unlooked at.

    The same promises hold as for `plan`, but nothing is moved for the price of power,
    except on small fleets.
    """
    if rewired(before.packing, snapshot):
        return plan(snapshot)
    touched = _touched(before, snapshot) | displaced(before.packing, snapshot)
    return _plan(snapshot, before, before.by_deployment.keys() - touched)


def _touched(before: Plan, snapshot: Snapshot) -> set[str]:
    """Deployments that are not as they were, or stand where something is not as it was."""
    was = before.snapshot
    deployments = {one.name: one for one in was.deployments}
    touched = {one.name for one in snapshot.deployments if deployments.get(one.name) != one}
    touched |= before.unsettled
    tried_again = before.snapshot.suspended.keys() ^ snapshot.suspended.keys()
    touched |= {one.name for one in snapshot.deployments if one.digest in tried_again}
    touched |= {
        one.name
        for one in snapshot.deployments
        if snapshot.demands.get(one.name) != was.demands.get(one.name)
    }
    nodes = {node.key: node for node in was.nodes}
    changed = set(differing(before.placements, snapshot.placements))
    changed |= before.placements.keys() - {node.key for node in snapshot.nodes}
    for node in snapshot.nodes:
        then = nodes.get(node.key)
        if node is not then and node != then:
            changed.add(node.key)
    for key in changed:
        for held in (*before.placements.get(key, ()), *snapshot.placements.get(key, ())):
            touched.add(held.deployment)
    return touched


def _plan(snapshot: Snapshot, earlier: Plan | None, carried: AbstractSet[str]) -> Plan:
    first = made = attempt(snapshot, earlier.packing if earlier else None, carried)
    for _ in range(_ROUNDS_MAX - 1):
        if made.settled:
            break
        carried -= made.touched
        last = made
        again = replace(snapshot, placements=_placements(snapshot, made, earlier))
        made = attempt(again, last.packing, carried)
        if made.packing.on_node == last.packing.on_node:
            break
    before = first.packing.fleet.before
    unsettled = set[str]()
    by_deployment, routes = dict[str, tuple[Decision, ...]](), dict[str, Route]()
    for one in snapshot.deployments:
        if earlier is not None and one.name not in made.touched:
            by_deployment[one.name] = earlier.by_deployment[one.name]
            routes[one.name] = earlier.routes[one.name]
            continue
        was, why = before.get(one.name, frozenset()), first.gone.get(one.name, {})
        by_deployment[one.name] = decide(snapshot, made, one, was, why)
        if any(which.verdict is not Verdict.KEPT for which in by_deployment[one.name]):
            unsettled.add(one.name)
        routes[one.name] = _route(snapshot, made.packing, one)
    return Plan(
        snapshot.revision,
        _placements(snapshot, made, earlier),
        routes,
        by_deployment,
        tuple(forgotten(snapshot, first.packing.fleet)),
        {name: short for name, short in made.short.items() if short},
        frozenset(unsettled),
        made.packing,
        snapshot,
    )


def _placements(snapshot: Snapshot, made: Attempt, earlier: Plan | None) -> Placements:
    """What every node must hold; the same values as before where nothing was touched."""
    fleet = made.packing.fleet
    placements = dict[str, tuple[Assignment, ...]]()
    told = dict[str, Assignment]()
    concerned: Iterable[int] = range(len(fleet.nodes))
    if earlier is not None:
        concerned, held = _concerned(made, earlier), earlier.placements
        placements = {key: held[key] for key in fleet.index if key in held}
    for at in concerned:
        node, on_node = fleet.nodes[at], made.packing.on_node[at]
        if node.health is Health.LOST:
            placements.pop(node.key, None)
            continue
        for name in on_node.keys() - told.keys():
            told[name] = assignment_of(on_node[name])
        now = tuple(told[name] for name in sorted(on_node))
        published = snapshot.placements.get(node.key)
        placements[node.key] = now if published is None or now != published else published
    return placements


def _concerned(made: Attempt, earlier: Plan) -> set[int]:
    """Nodes that may hold something else than in an earlier plan."""
    packing, then = made.packing, earlier.packing
    concerned = set(packing.fleet.moved(then.fleet))
    for name in made.touched:
        concerned.update(packing.held(name))
    for name in made.touched | (earlier.by_deployment.keys() - packing.names()):
        keys = (then.fleet.nodes[at].key for at in then.held(name))
        concerned.update(packing.fleet.index[key] for key in keys if key in packing.fleet.index)
    return concerned


def assignment_of(deployment: Deployment) -> Assignment:
    """What a node is told that must hold a replica of it."""
    manifest = deployment.manifest
    return Assignment(
        deployment=deployment.name,
        digest=deployment.digest,
        slots=manifest.slots,
        input_tokens_output=manifest.input_tokens_output,
        output_tokens_output=manifest.output_tokens_output,
        cached_tokens_output=manifest.cached_tokens_output,
    )


def _route(snapshot: Snapshot, packing: Packing, deployment: Deployment) -> Route:
    holders = [packing.fleet.nodes[at] for at in sorted(packing.held(deployment.name))]
    return route_of(deployment, holders, snapshot.routes, snapshot.demands.get(deployment.name))
