"""Whole rollouts on a fleet that changes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from busbar_errors import Conflict, Rejected
from busbar_scheduler.domain.comparing import Outcomes, Tally
from busbar_scheduler.domain.fleet import (
    Bundle,
    Demand,
    Deployment,
    Health,
    Node,
    Placements,
    Replica,
    ReplicaState,
    Snapshot,
)
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.planning import Plan, plan
from busbar_scheduler.domain.publishing import Changes
from busbar_scheduler.domain.rollout_news import Moved
from busbar_scheduler.domain.rollouts import Canary, Phase, Rollout
from busbar_scheduler.domain.tracks import expanded, joined, ready_replicas
from busbar_scheduler.usecases.declare_deployment import Wish, declare, roll_back
from busbar_scheduler.usecases.rolling_out import Rollouts

OLD, NEW, NEWER = "sha256:01", "sha256:02", "sha256:03"
MODEL = Manifest("m", "1", Task.TENSOR, slots=4, memory_mib=100, price_class="p")
TERMS = Rollout(canary_percent=20, observe_s=3, min_samples=5, ready_within_s=12)
BUNDLES = tuple(
    Bundle(digest, 1, replace(MODEL, version=digest), 0) for digest in (OLD, NEW, NEWER)
)
NODES = ("r.s.n0", "r.s.n1", "r.t.n2")
LOADS_ROUNDS = 2
CALM_ROUNDS = 90
CANARY_AT, SETTLES_AT = 5, 18


@dataclass
class Fleet:
    """Nodes that do as they are told, seen and changed once a second; all requests go well."""

    standing: Deployment
    memory_mib: int
    second: int = 0
    dead: set[str] = field(default_factory=set[str])
    demand: int = 2
    told: Placements = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    unserved: list[int] = field(default_factory=list[int])
    told_of: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    _held: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def token(self) -> int | None:
        return 1

    def step_down(self) -> None:
        raise AssertionError("nobody else leads")

    def declared(self) -> tuple[Deployment, ...]:
        return (self.standing,)

    def current(self) -> Snapshot | None:
        demands = {"m": Demand(self.demand)}
        nodes = tuple(self._node(key) for key in NODES)
        return Snapshot(1, (self.standing,), nodes, self.told, demands=demands)

    def deployment(self, name: str) -> Deployment | None:
        return self.standing if name == "m" else None

    def ready(self, deployment: Deployment) -> int:
        snapshot = self.current()
        assert snapshot is not None
        return ready_replicas(snapshot, deployment.name, deployment.digest)

    def bundles(self) -> tuple[Bundle, ...]:
        return BUNDLES

    async def put_deployment(self, deployment: Deployment) -> None:
        self.standing = deployment

    async def delete_deployment(self, name: str) -> None:
        raise AssertionError(name)

    async def put_bundle(self, bundle: Bundle) -> None:
        raise AssertionError(bundle)

    async def delete_bundle(self, digest: str) -> None:
        raise AssertionError(digest)

    async def plan_published(self, plan: Plan, changes: Changes) -> None:
        raise AssertionError(plan)

    async def rollout_moved(self, moved: Moved) -> None:
        self.told_of.append((str(moved.phase), moved.rolled_back))

    async def pass_second(self, rollouts: Rollouts) -> None:
        """Plan, carry out, answer requests, and look."""
        snapshot = self.current()
        assert snapshot is not None
        whole = expanded(snapshot)
        decided = plan(whole)
        route = joined(decided.routes, whole)["m"]
        canary = route.canary
        served = route.targets or (canary and canary.percent and canary.targets)
        if not served and self._could_serve(snapshot):
            self.unserved.append(self.second)
        self.told = decided.placements
        self._carry_out()
        count = 10 * self.second
        digests = {OLD, NEW}
        counted = {("m", one): Outcomes(answered=count) for one in digests}
        self.tally.heard("g", "run", counted, float(self.second))
        self.second += 1
        await rollouts.look(float(self.second), self.second * 1_000)

    def _carry_out(self) -> None:
        wanted = {
            (node, one.deployment): one.digest
            for node, held in self.told.items()
            for one in held
            if node not in self.dead
        }
        self._held = {
            key: self._held[key]
            if self._held.get(key, ("", 0))[0] == digest
            else (digest, self.second)
            for key, digest in wanted.items()
        }

    def _could_serve(self, snapshot: Snapshot) -> bool:
        canary = self.standing.canary
        serving = {("m", self.standing.digest), ("m--canary", canary.digest if canary else "")}
        return any(
            node.health is Health.OK
            and one.state is ReplicaState.READY
            and (one.deployment, one.digest) in serving
            for node in snapshot.nodes
            for one in node.replicas
        )

    def _node(self, key: str) -> Node:
        region, site, _ = key.split(".")
        replicas = tuple(
            Replica(name, digest, self._state(since), MODEL.slots)
            for (node, name), (digest, since) in sorted(self._held.items())
            if node == key
        )
        health = Health.EVICTED if key in self.dead else Health.OK
        return Node(key, region, site, self.memory_mib, slots=100, health=health, replicas=replicas)

    def _state(self, since: int) -> ReplicaState:
        loaded = self.second - since > LOADS_ROUNDS
        return ReplicaState.READY if loaded else ReplicaState.LOADING


Event = tuple[int, str | int]
"""The second, and the node that dies or returns, or how many replicas demand wants."""


async def roll_out(fleet: Fleet, events: Sequence[Event]) -> None:
    """From a deployment that serves to one without a version on trial, or as long as we wait."""
    rollouts = Rollouts(fleet, fleet, fleet, fleet)
    last = max((at for at, _ in events), default=0)
    while fleet.second < last + CALM_ROUNDS:
        for at, what in events:
            if at != fleet.second:
                continue
            if isinstance(what, int):
                fleet.demand = what
            else:
                fleet.dead ^= {what}
        if fleet.second == CANARY_AT:
            canary = Canary(NEW, replace(MODEL, version="2"), Phase.OBSERVING, 20, 1_000)
            fleet.standing = replace(fleet.standing, canary=canary)
        await fleet.pass_second(rollouts)
        if fleet.second > last + CANARY_AT and fleet.standing.canary is None:
            return


@pytest.mark.parametrize(
    ("events", "memory_mib"),
    [
        ([], 1_000),
        ([(SETTLES_AT, NODES[0])], 250),
        ([(SETTLES_AT, NODES[0]), (SETTLES_AT, NODES[1])], 250),
        ([(8, NODES[0]), (14, NODES[0]), (20, NODES[2])], 250),
        ([(SETTLES_AT, 4)], 250),
        ([(10, 3), (20, 1), (30, 4)], 250),
        ([], 100),
    ],
    ids=["calm", "one dies", "two die", "one comes and goes", "demand grows", "ups", "no room"],
)
def test_every_rollout_ends_whatever_becomes_of_the_fleet(
    events: list[Event], memory_mib: int
) -> None:
    fleet = Fleet(Deployment("m", OLD, MODEL, 2, max_replicas=4, rollout=TERMS), memory_mib)
    asyncio.run(roll_out(fleet, events))

    assert fleet.standing.canary is None
    assert fleet.unserved == []
    assert fleet.told_of[-1] == ("leaving", fleet.standing.rolled_back is not None)
    assert len(fleet.told_of) == len(set(fleet.told_of))


async def declare_until_taken(fleet: Fleet, rollouts: Rollouts, wish: Wish) -> int:
    """Try each second; how often it was refused."""
    for refused in range(CALM_ROUNDS):
        try:
            await declare(fleet, fleet, wish, fleet.second * 1_000)
        except Conflict:
            await fleet.pass_second(rollouts)
        else:
            return refused
    raise AssertionError("it was never taken")


async def test_a_third_version_waits_until_the_first_serves_again() -> None:
    fleet = Fleet(Deployment("m", OLD, MODEL, 2, rollout=TERMS), 1_000)
    rollouts, served = Rollouts(fleet, fleet, fleet, fleet), list[bool]()

    def settles() -> bool:
        canary = fleet.standing.canary
        return canary is not None and canary.phase is Phase.SETTLING

    for _ in range(CANARY_AT):
        await fleet.pass_second(rollouts)
    terms = Wish("m", NEW, 2, (), (), rollout=TERMS)
    await declare(fleet, fleet, terms, fleet.second * 1_000)
    while not settles():
        await fleet.pass_second(rollouts)
    await fleet.pass_second(rollouts)
    await roll_back(fleet, fleet, "m", fleet.second * 1_000)
    refused = await declare_until_taken(fleet, rollouts, replace(terms, bundle=NEWER))
    for _ in range(LOADS_ROUNDS):
        served.append(fleet.ready(fleet.standing) > 0)
        await fleet.pass_second(rollouts)

    assert refused > 0
    assert fleet.standing.canary is not None
    assert (fleet.standing.digest, fleet.standing.canary.digest) == (OLD, NEWER)
    assert served == [True] * LOADS_ROUNDS
    assert fleet.unserved == []


@pytest.mark.parametrize(
    ("memory_mib", "at_once", "serves", "unserved"),
    [(1_000, False, NEW, False), (100, False, OLD, False), (100, True, NEW, True)],
    ids=["room for both", "no room", "no room, and at once"],
)
async def test_another_bundle_takes_over_when_it_is_ready_and_never_before(
    memory_mib: int, at_once: bool, serves: str, unserved: bool
) -> None:
    fleet = Fleet(Deployment("m", OLD, MODEL, 3), memory_mib, demand=3)
    rollouts, silent = Rollouts(fleet, fleet, fleet, fleet), list[int]()
    for _ in range(CANARY_AT):
        await fleet.pass_second(rollouts)
    wish = Wish("m", NEW, 3, (), (), at_once=at_once)
    await declare(fleet, fleet, wish, fleet.second * 1_000)
    for _ in range(Rollout().ready_within_s + CALM_ROUNDS):
        await fleet.pass_second(rollouts)
        canary = fleet.standing.canary
        ready = fleet.ready(fleet.standing)
        if not ready and not (canary and canary.phase is Phase.SETTLING):
            silent.append(fleet.second)

    assert (fleet.standing.digest, fleet.standing.canary) == (serves, None)
    assert fleet.unserved == []
    assert bool(silent) is unserved
    back = fleet.standing.rolled_back
    assert (back is None) is (serves == NEW)
    assert back is None or "0 of 3 replicas have a place" in back.reason


async def test_who_rolls_back_twice_does_not_go_forward_again() -> None:
    fleet = Fleet(Deployment("m", OLD, MODEL, 3), 1_000, demand=3)
    rollouts, seen = Rollouts(fleet, fleet, fleet, fleet), set[str]()
    for _ in range(CANARY_AT):
        await fleet.pass_second(rollouts)
    await declare(fleet, fleet, Wish("m", NEW, 3, (), ()), fleet.second * 1_000)
    for _ in range(CALM_ROUNDS):
        await fleet.pass_second(rollouts)
    assert (fleet.standing.digest, fleet.standing.canary) == (NEW, None)
    for _ in range(CALM_ROUNDS):
        canary = fleet.standing.canary
        seen.add(str(canary.phase) if canary else "")
        with contextlib.suppress(Rejected):
            await roll_back(fleet, fleet, "m", fleet.second * 1_000)
        await fleet.pass_second(rollouts)

    assert seen == {"", "taking over", "settling", "leaving"}
    assert (fleet.standing.digest, fleet.standing.canary) == (OLD, None)
    assert fleet.unserved == []
    with pytest.raises(Rejected, match="was rolled back"):
        await roll_back(fleet, fleet, "m", fleet.second * 1_000)
    await roll_back(fleet, fleet, "m", fleet.second * 1_000, at_once=True)
    assert fleet.standing.digest == NEW


async def test_who_waits_in_vain_for_the_bundle_before_can_have_it_at_once() -> None:
    fleet = Fleet(Deployment("m", NEW, MODEL, 3, previous_digest=OLD), 100, demand=3)
    rollouts = Rollouts(fleet, fleet, fleet, fleet)
    for _ in range(CANARY_AT):
        await fleet.pass_second(rollouts)
    await roll_back(fleet, fleet, "m", fleet.second * 1_000)
    waiting = fleet.standing
    await fleet.pass_second(rollouts)
    await roll_back(fleet, fleet, "m", fleet.second * 1_000, at_once=True)
    for _ in range(CALM_ROUNDS):
        await fleet.pass_second(rollouts)

    assert waiting.canary is not None
    assert (waiting.digest, waiting.canary.digest) == (NEW, OLD)
    assert (fleet.standing.digest, fleet.standing.canary) == (OLD, None)
    assert fleet.ready(fleet.standing) == 3
