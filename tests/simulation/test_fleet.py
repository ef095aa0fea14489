"""A hundred short days of a fleet, each with its own troubles: the design's promises hold.

`./just simulate --seed N --size short` repeats the day of a seed, of 0 and 50 `--size small`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
from busbar_gateway.domain.admission import Ticket
from busbar_gateway.domain.policies import UNLIMITED
from busbar_scheduler.domain.demand import Asked
from busbar_scheduler.domain.fleet import Placements, Route, Snapshot
from busbar_scheduler.domain.fleet import Target as RouteTarget
from busbar_scheduler.domain.planning import assignment_of

from simulation.fleet.agenda import Agenda
from simulation.fleet.day import LONGER, SHORT, SMALL, Trouble, draw
from simulation.fleet.demand import Asked as Arriving
from simulation.fleet.evictions import GIVEN_UP_WITHIN_S, Evicted
from simulation.fleet.fairness import Fairness
from simulation.fleet.gateways import Gateway
from simulation.fleet.measures import Measures
from simulation.fleet.policies import Decided, policy_routes
from simulation.fleet.promises import Breach, Promises
from simulation.fleet.run import Run
from simulation.fleet.streams import Streams
from simulation.fleet.work import Outcome, Request, Said, Work

SEEDS, EVERY_SMALL = 100, 50
ALL_SEEDS_S_MAX = 120.0
LOOKED_AT = {
    "N+1",
    "VTC's bound",
    "a blip moves nothing",
    "ended in time",
    "no memory is overused",
    "no request is lost",
    "no slot is given twice",
    "no slot is overused",
    "nodes are given up by and by",
    "nothing is left behind",
    "one outcome",
    "plans fit nodes",
    "plans keep to the cap",
    "power stays below the cap",
    "residency is never broken",
    "residency is never planned away",
    "streams go on",
    "survives a site",
    "who is gone is given up",
}


TOOK_S = dict[int, float]()
"""Seed → CPU time of its day, which the load of the machine leaves nearly as it is."""


@cache
def played(seed: int, policy: str = "busbar") -> Run:
    size, began_s = SMALL if seed % EVERY_SMALL == 0 else SHORT, time.process_time()
    run = Run(draw(seed, size), policy)
    run.play()
    if policy == "busbar":
        TOOK_S[seed] = time.process_time() - began_s
    return run


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_day_of_troubles_breaks_no_promise(seed: int) -> None:
    run = played(seed)

    assert run.promises.ended.total() == run.promises.arrived > 100
    assert run.promises.ended[Outcome.SERVED] > 0.2 * run.promises.arrived


def test_a_hundred_days_are_played_within_two_minutes() -> None:
    for seed in range(1, 6):
        played(seed)

    assert sum(TOOK_S.values()) / len(TOOK_S) < ALL_SEEDS_S_MAX / SEEDS, TOOK_S


def test_all_troubles_happen_and_are_worked_around() -> None:
    runs = [played(seed) for seed in range(1, 20)]
    happened = sum((run.troubles.happened for run in runs), Counter[Trouble]())

    assert set(happened) == set(Trouble)
    assert sum(run.measures.tried_again for run in runs) > 30
    assert sum(run.measures.resumed for run in runs) > 3
    looked_at = sum((run.promises.checks for run in runs), Counter[str]())
    assert not [promise for promise in LOOKED_AT if looked_at[promise] < 10]


def test_the_same_seed_is_the_same_day() -> None:
    again = Run(draw(1, SHORT), "busbar")
    again.play()

    assert again.events == played(1).events
    assert again.measures == played(1).measures


def test_busbar_serves_more_than_who_knew_the_average_and_placed_once() -> None:
    served = Counter[str]()
    for seed in range(1, 4):
        for policy in ("busbar", "static"):
            run = Run(draw(seed, LONGER), policy)
            run.play()
            served[policy] += run.served

    assert served["busbar"] > served["static"]


def test_busbar_is_cheaper_than_who_takes_any_room_and_keeps_spares() -> None:
    policies = ("busbar", "least loaded")
    runs = {name: [played(seed, name) for seed in range(1, 5)] for name in policies}
    paid = {
        name: sum(one.energy_nanos for one in of) / sum(one.served for one in of)
        for name, of in runs.items()
    }

    assert paid["busbar"] < 0.95 * paid["least loaded"]
    assert sum(one.promises.broken["N+1"] for one in runs["least loaded"]) > 0


class Worker:
    """A replica that takes one request and works on it for ever."""

    pulls = 0
    reachable = True

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def take(self, work: Work) -> bool:
        work.copy = self
        self._gateway.said(work, "r0.s0.n0", Said.STARTED)
        return True

    def drop(self, work: Work) -> None:
        work.over = True


@pytest.mark.parametrize(
    ("works", "out"),
    [(True, {"r0": 2, "r1": 1}), (False, {"r0": 0, "r1": 3})],
    ids=["busy", "nobody there"],
)
def test_work_that_waits_in_vain_is_sent_on_and_only_who_takes_nothing_is_avoided(
    works: bool, out: dict[str, int]
) -> None:
    agenda, manifest = Agenda(100.0), draw(1, SHORT).deployments[0].manifest
    streams = Streams(agenda, lambda work, waited_s: None)
    promises, measures = Promises(7, agenda, {}), Measures(60.0)
    gateway = Gateway("g", "r0", agenda, streams, promises, measures, {"t": UNLIMITED})
    targets = (RouteTarget("r0", 2, 1), RouteTarget("r1", 4, 1))
    gateway.routed(Route("m", "", manifest, targets, (), b"", b"", 0, ""))
    if works:
        streams.pull("r0", "m", Worker(gateway))
    for _ in range(2):
        gateway.arrive("t", "m", Arriving(100.0, "r0", 10, 10, streamed=False))
    agenda.run(102.5)
    gateway.arrive("t", "m", Arriving(102.5, "r0", 10, 10, streamed=False))

    assert gateway.out == out


# --- what breaks a promise is seen -----------------------------------------------------------


class Careless:
    """Puts every model on certain nodes, whatever that breaks."""

    name = "careless"
    not_promised = frozenset[str]()

    def __init__(self, nodes: slice) -> None:
        self._nodes = nodes

    def look(self, snapshot: Snapshot, asked: Mapping[str, Asked], now: float) -> bool:
        return False

    def restarted(self) -> None: ...

    def decide(self, snapshot: Snapshot, now: float) -> Decided:
        keys = [node.key for node in snapshot.nodes[self._nodes]]
        placements: Placements = {
            key: tuple(assignment_of(one) for one in snapshot.deployments) for key in keys
        }
        return Decided(placements, policy_routes(snapshot, placements), {})


@pytest.mark.parametrize(
    ("nodes", "memory_mib", "power_w", "broken"),
    [
        (slice(0, 1), None, None, "plans fit nodes"),
        (slice(None), 1, 0, "residency is never planned away"),
        (slice(None), 1, None, "plans keep to the cap"),
        (slice(0, 1), 1, 0, "N+1"),
    ],
    ids=["memory", "residency", "power", "spares"],
)
def test_a_careless_plan_is_a_breach(
    nodes: slice, memory_mib: int | None, power_w: int | None, broken: str
) -> None:
    day = draw(1, SHORT)
    free = broken != "residency is never planned away"
    deployments = tuple(
        replace(
            one,
            regions=() if free else one.regions or ("r1",),
            manifest=replace(
                one.manifest,
                slots=1,
                memory_mib=memory_mib or one.manifest.memory_mib,
                power_w=one.manifest.power_w if power_w is None else power_w,
            ),
        )
        for one in day.deployments
    )
    run = Run(replace(day, deployments=deployments), "careless", Careless(nodes))

    with pytest.raises(Breach, match=f"seed 1, .*{re.escape(broken)}"):
        run.play()


def _promises() -> Promises:
    return Promises(7, Agenda(0.0), {})


def _request() -> Request:
    gateway = played(1).gateways[0]
    return Request(1, "t", "m", 10, 10, False, gateway, 60.0, Ticket("t", 60.0, 0.0))


def test_a_request_that_ends_twice_is_a_breach() -> None:
    promises, request = _promises(), _request()
    promises.end(request, Outcome.SERVED)

    with pytest.raises(Breach, match=r"seed 7, .*one outcome"):
        promises.end(request, Outcome.SERVED)


def test_a_request_that_never_ends_is_a_breach() -> None:
    promises = _promises()
    promises.arrived = 1

    with pytest.raises(Breach, match="no request is lost"):
        promises.at_rest({})


def test_a_slot_that_is_taken_twice_is_a_breach() -> None:
    run = played(1)
    name = run.day.deployments[0].name
    promises = Promises(7, Agenda(0.0), run.promises.deployments)
    request = _request()
    request.deployment = name

    with pytest.raises(Breach, match="no slot is overused"):
        promises.on_node("r0", "r0.s0.n0", request, 5, 4)


def test_power_above_the_cap_is_a_breach_once_the_grace_is_over() -> None:
    promises = _promises()
    promises.drew("r0.s0", 1_001.0, 1_000, 29.0)

    with pytest.raises(Breach, match="power stays below the cap"):
        promises.drew("r0.s0", 1_001.0, 1_000, 31.0)


def test_a_slot_that_is_lent_while_its_own_region_uses_it_is_a_breach() -> None:
    promises = _promises()
    promises.shared("m", "r0", 4.0, 4)

    with pytest.raises(Breach, match="no slot is given twice"):
        promises.shared("m", "r0", 4.5, 4)


SITE = [f"r0.s0.n{at}" for at in range(8)]


@pytest.mark.parametrize(
    ("taken", "silent_s", "broken"),
    [
        (SITE[:1], 59.0, "a blip moves nothing"),
        (SITE[:3], 61.0, "nodes are given up by and by"),
        ([], GIVEN_UP_WITHIN_S + 1.0, "who is gone is given up"),
    ],
    ids=["too soon", "too many", "never"],
)
def test_nodes_that_are_not_given_up_by_and_by_are_a_breach(
    taken: list[str], silent_s: float, broken: str
) -> None:
    evicted = Evicted(SITE, _promises())
    silent, held = dict.fromkeys(SITE, silent_s), set(SITE)

    with pytest.raises(Breach, match=broken):
        evicted.look(silent, held, held - set(taken), 1_000.0)


def test_a_quarter_of_a_site_within_a_window_is_no_breach() -> None:
    promises = _promises()
    evicted, silent = Evicted([*SITE, *(f"r0.s1.n{at}" for at in range(32))], promises), 61.0
    for window in range(4):
        held, left = set(SITE[2 * window :]), set(SITE[2 * window + 2 :])
        evicted.look(dict.fromkeys(held, silent + 15.0 * window), held, left, 15.0 * window)

    assert promises.checks["nodes are given up by and by"] == 2 * len(SITE)


def test_serving_one_of_two_who_wait_breaks_the_bound() -> None:
    fairness = Fairness()
    fairness.waits("a", 1.0)
    fairness.waits("b", 1.0)
    for _ in range(2):
        fairness.started("a", 1.0, 100.0, 1)
    assert not fairness.broken
    fairness.started("a", 1.0, 100.0, 1)

    assert "a and b are 300 apart, 200 is allowed" in fairness.broken


def test_turns_keep_to_the_bound_whenever_the_other_began_to_wait() -> None:
    fairness = Fairness()
    fairness.waits("a", 1.0)
    for _ in range(9):
        fairness.started("a", 1.0, 100.0, 1)
    fairness.waits("b", 2.0)
    for _ in range(5):
        fairness.started("b", 2.0, 100.0, 1)
        fairness.started("b", 2.0, 100.0, 1)
        fairness.started("a", 1.0, 100.0, 1)

    assert not fairness.broken
    assert fairness.gap == 100.0
