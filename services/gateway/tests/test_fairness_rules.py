"""What tenants and bands that always have more to do get of a lane, over random histories."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from busbar_gateway.domain.admission import BAND_WEIGHTS, Lane, Ticket
from busbar_gateway.domain.policies import Band
from hypothesis import given, settings
from hypothesis import strategies as st

FOREVER = 1e12


@dataclass
class Workload:
    """Keeps tenants backlogged in a lane, ends requests in random order, notes what they got."""

    slots: int
    weights: dict[str, int]
    largest_cost: int
    exact: bool
    """Whether costs are known before a request runs."""
    draws: random.Random
    bands: dict[str, Band] = field(default_factory=dict[str, Band])
    running: list[tuple[Ticket, float]] = field(default_factory=list[tuple[Ticket, float]])
    charged: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    waiting: Counter[str] = field(default_factory=Counter[str])
    costs: dict[Ticket, float] = field(default_factory=dict[Ticket, float])

    def __post_init__(self) -> None:
        self.lane = Lane(queue_max=10**6, limit=self.slots)

    def backlog(self, tenant: str, count: int = 2) -> None:
        while self.waiting[tenant] < count:
            cost = float(self.draws.randint(1, self.largest_cost))
            ticket = Ticket(
                tenant,
                FOREVER,
                0.0,
                self.bands.get(tenant, Band.STANDARD),
                self.weights[tenant],
                cost if self.exact else 0.0,
            )
            self.costs[ticket] = cost
            assert self.lane.enqueue(ticket, 0.0) is None
            self.waiting[tenant] += 1

    def start(self) -> str | None:
        ticket = self.lane.start_next(0.0)
        if ticket is None:
            return None
        self.charged[ticket.tenant_id] += ticket.charged
        self.waiting[ticket.tenant_id] -= 1
        self.running.append((ticket, self.costs.pop(ticket)))
        return ticket.tenant_id

    def end_one(self) -> None:
        ticket, cost = self.running.pop(self.draws.randrange(len(self.running)))
        if self.draws.random() < 0.5:  # a stream, of which a part is seen first
            self._note(ticket, lambda: self.lane.used(ticket, cost * self.draws.random()))
        self._note(ticket, lambda: self.lane.finish(ticket, 0.0, cost))

    def _note(self, ticket: Ticket, change: Callable[[], None]) -> None:
        before = ticket.charged
        change()
        self.charged[ticket.tenant_id] += ticket.charged - before


def spread(series: list[float]) -> float:
    """The largest difference between two points in time."""
    return max(series) - min(series)


@pytest.mark.parametrize("exact", [True, False])
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    slots=st.integers(1, 8),
    weights=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    largest_cost=st.integers(1, 50),
)
def test_the_service_gap_of_backlogged_tenants_is_bounded(
    exact: bool, seed: int, slots: int, weights: list[int], largest_cost: int
) -> None:
    """2U, U = (L + C*K) / least weight: L the largest charge, K the largest correction, C slots."""
    tenants = [f"t{number}" for number in range(len(weights))]
    others = {f"other{number}": 1 + number for number in range(3)}
    draws = random.Random(seed)
    load = Workload(
        slots, {**dict(zip(tenants, weights, strict=True)), **others}, largest_cost, exact, draws
    )
    gaps: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(300):
        for tenant in tenants:
            load.backlog(tenant)
        if draws.random() < 0.2:  # tenants that come and go
            load.backlog(draws.choice(list(others)), draws.randint(1, 3))
        while load.start() is not None:
            for tenant in tenants:
                load.backlog(tenant)
        for one in tenants:
            for two in tenants:
                difference = load.charged[one] / load.weights[one]
                gaps[one, two].append(difference - load.charged[two] / load.weights[two])
        load.end_one()

    largest_correction = 0 if exact else largest_cost
    bound = 2 * (largest_cost + slots * largest_correction) / min(load.weights.values())
    assert max(spread(series) for series in gaps.values()) <= bound + 1e-6


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_equal_requests_are_served_in_proportion_to_the_weights(weights: list[int]) -> None:
    named = {f"t{number}": weight for number, weight in enumerate(weights)}
    load = Workload(1, named, 1, exact=True, draws=random.Random(1))
    served: Counter[str] = Counter()
    rounds = 20
    for _ in range(rounds * sum(weights)):
        for tenant in named:
            load.backlog(tenant)
        started = load.start()
        assert started is not None
        served[started] += 1
        load.end_one()

    for tenant, weight in named.items():
        assert abs(served[tenant] - rounds * weight) <= weight + 1


@given(seed=st.integers(0, 2**32), slots=st.integers(2, 40))
@settings(max_examples=30)
def test_no_band_starves_the_others(seed: int, slots: int) -> None:
    """Each gets its part of what is charged, but for what the bound on the gap allows."""
    bands = {"people": Band.INTERACTIVE, "usual": Band.STANDARD, "jobs": Band.BATCH}
    largest_cost = 4
    load = Workload(
        slots, dict.fromkeys(bands, 1), largest_cost, True, random.Random(seed), bands=bands
    )
    for _ in range(2000):
        for tenant in bands:
            load.backlog(tenant)
        while load.start() is not None:
            for tenant in bands:
                load.backlog(tenant)
        load.end_one()

    total = sum(load.charged.values())
    for tenant, band in bands.items():
        part = total * BAND_WEIGHTS[band] / sum(BAND_WEIGHTS)
        allowed = 2 * largest_cost * BAND_WEIGHTS[0] / BAND_WEIGHTS[2]
        assert load.charged[tenant] >= part - allowed


@pytest.mark.parametrize("band", list(Band))
def test_idleness_earns_no_credit(band: Band) -> None:
    load = Workload(
        1,
        {"busy": 1, "idle": 1},
        1,
        exact=True,
        draws=random.Random(1),
        bands={"busy": band, "idle": band},
    )
    load.backlog("idle", 1)
    load.start()
    load.end_one()
    for _ in range(500):
        load.backlog("busy")
        load.start()
        load.end_one()

    order: list[str | None] = []
    for _ in range(10):
        load.backlog("busy")
        load.backlog("idle")
        order.append(load.start())
        load.end_one()

    assert order.count("idle") in {5, 6}


def test_idleness_of_a_higher_band_earns_no_credit_over_a_lower_one() -> None:
    bands = {"people": Band.INTERACTIVE, "usual": Band.STANDARD}
    load = Workload(1, dict.fromkeys(bands, 1), 1, exact=True, draws=random.Random(1), bands=bands)
    for _ in range(500):
        load.backlog("usual")
        load.start()
        load.end_one()

    order: list[str | None] = []
    for _ in range(25):
        load.backlog("usual")
        load.backlog("people")
        order.append(load.start())
        load.end_one()

    assert order[0] == "people"
    assert order.count("usual") == 5


def test_a_tenant_whose_answers_are_long_gets_fewer_of_them() -> None:
    lane = Lane(queue_max=10**6, limit=1)
    costs = {"long": 100.0, "short": 10.0}
    spent: Counter[str] = Counter()
    for _ in range(400):
        for tenant in costs:
            lane.enqueue(Ticket(tenant, FOREVER, 0.0), 0.0)
        ticket = lane.start_next(0.0)
        assert ticket is not None
        lane.finish(ticket, 0.0, costs[ticket.tenant_id])
        spent[ticket.tenant_id] += int(costs[ticket.tenant_id])

    assert abs(spent["long"] - spent["short"]) <= 2 * 200


def test_what_never_ran_is_not_charged() -> None:
    lane = Lane(queue_max=10, limit=1)
    for _ in range(5):
        given_up = Ticket("unlucky", FOREVER, 0.0)
        assert lane.try_start(given_up, 0.0)
        lane.release(given_up)
    first, second = Ticket("other", FOREVER, 0.0), Ticket("unlucky", FOREVER, 0.0)
    lane.limit = 0
    lane.enqueue(second, 0.0)
    lane.enqueue(first, 0.0)
    lane.limit = 1

    assert lane.start_next(0.0) is second


def test_thousands_of_idle_tenants_are_forgotten_and_those_in_flight_are_not() -> None:
    lane = Lane(queue_max=10, limit=10**9)
    kept = Ticket("kept", FOREVER, 0.0)
    assert lane.try_start(kept, 0.0)
    for number in range(25_000):
        ticket = Ticket(f"t{number}", FOREVER, 0.0)
        assert lane.try_start(ticket, 0.0)
        lane.finish(ticket, 0.0, 1.0)
    lane.used(kept, 1e6)
    again = Ticket("kept", FOREVER, 0.0)
    assert lane.try_start(again, 0.0)

    assert again.flow is kept.flow
    assert sum(band.tenants.known for band in lane.bands) <= 10_002
