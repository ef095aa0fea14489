"""Who may be dispatched, who waits, who is refused."""

from __future__ import annotations

import pytest
from busbar_gateway.domain.admission import Full, Lane, Ticket, holdback, most_in_flight
from busbar_gateway.domain.policies import Band
from hypothesis import given
from hypothesis import strategies as st


def ticket(
    tenant: str = "a",
    deadline: float = 100.0,
    arrived: float = 0.0,
    band: Band = Band.STANDARD,
) -> Ticket:
    return Ticket(tenant, deadline, arrived, band)


@pytest.mark.parametrize(
    ("part", "most"),
    [(0, 0), (8, 11), (4, 6), (1, 3), (0.25, 2)],
)
def test_a_gateway_takes_its_part_of_the_slots_and_a_little_more(part: float, most: int) -> None:
    assert most_in_flight(part) == most


@pytest.mark.parametrize(
    ("service_s", "share"),
    [(0.0, 6), (0.001, 6), (0.05, 5), (0.19, 5), (0.2, 4), (60.0, 4)],
)
def test_long_requests_do_not_queue_in_the_stream(service_s: float, share: int) -> None:
    assert most_in_flight(4, service_s) == share


def test_nobody_overtakes_the_queue() -> None:
    lane = Lane(queue_max=10, limit=1)
    first, second, third = ticket(), ticket(), ticket()
    assert lane.try_start(first, 0)
    assert not lane.try_start(second, 0)
    lane.enqueue(second, 0)
    lane.finish(first, 1)

    assert not lane.try_start(third, 1)
    assert lane.start_next(1) is second


def test_tenants_take_turns_whoever_queued_more() -> None:
    lane = Lane(queue_max=100, limit=1)
    flood = [ticket("flood") for _ in range(5)]
    small = [ticket("small") for _ in range(2)]
    for waiting in (*flood, *small):
        lane.enqueue(waiting, 0)

    order: list[str] = []
    while (started := lane.start_next(0)) is not None:
        order.append(started.tenant_id)
        lane.finish(started, 0)

    assert order == ["flood", "small", "flood", "small", "flood", "flood", "flood"]


def test_a_full_lane_makes_room_at_the_cost_of_who_has_most() -> None:
    lane = Lane(queue_max=3, limit=1)
    flood = [ticket("flood") for _ in range(3)]
    for waiting in flood:
        assert lane.enqueue(waiting, 0) is None

    displaced = lane.enqueue(ticket("small"), 0)

    assert displaced is flood[-1]
    assert isinstance(lane.enqueue(ticket("flood"), 0), Full)


def test_who_cannot_be_served_before_the_deadline_is_refused_at_once() -> None:
    lane = Lane(queue_max=100, limit=1, service_s=1.0)
    for _ in range(4):
        lane.enqueue(ticket(), 0)

    refused = lane.enqueue(ticket(deadline=3.0), 0)

    assert isinstance(refused, Full)
    assert refused.retry_after_s >= 1
    assert lane.enqueue(ticket(deadline=30.0), 0) is None


def test_a_restart_that_some_sat_through_refuses_nobody_afterwards() -> None:
    lane = Lane(queue_max=100, limit=10)
    for took_s in [0.01] * 50 + [5.0] * 10:
        started = ticket()
        assert lane.try_start(started, 0)
        lane.finish(started, took_s)
    for _ in range(60):
        assert lane.enqueue(ticket(deadline=20.0), 0) is None


def test_a_flood_does_not_make_the_wait_of_others_look_hopeless() -> None:
    lane = Lane(queue_max=1000, limit=1, service_s=1.0)
    for _ in range(100):
        lane.enqueue(ticket("flood", deadline=1000), 0)

    assert lane.enqueue(ticket("small", deadline=3), 0) is None
    assert isinstance(lane.enqueue(ticket("flood", deadline=3), 0), Full)


def test_a_full_lane_makes_room_for_a_higher_band_and_never_for_a_lower_one() -> None:
    lane = Lane(queue_max=2, limit=1)
    batch = [ticket(f"t{n}", band=Band.BATCH) for n in range(2)]
    for waiting in batch:
        lane.enqueue(waiting, 0)

    assert lane.enqueue(ticket("people", band=Band.INTERACTIVE), 0) in batch
    assert lane.enqueue(ticket("usual"), 0) in batch
    assert isinstance(lane.enqueue(ticket("late", band=Band.BATCH), 0), Full)


@pytest.mark.parametrize(
    ("band", "limit", "kept"),
    [
        (Band.INTERACTIVE, 100, 0),
        (Band.STANDARD, 100, 5),
        (Band.STANDARD, 19, 0),
        (Band.BATCH, 100, 10),
        (Band.BATCH, 2, 1),
        (Band.BATCH, 1, 0),
        (Band.BATCH, 0, 0),
    ],
)
def test_a_few_slots_are_held_back_for_the_bands_above(band: Band, limit: int, kept: int) -> None:
    assert holdback(band, limit) == kept


def test_a_band_borrows_what_the_others_leave_but_for_the_holdback() -> None:
    lane = Lane(queue_max=100, limit=10)
    for number in range(20):
        lane.enqueue(ticket(f"t{number}", band=Band.BATCH), 0)
    while lane.start_next(0) is not None:
        pass
    assert lane.in_flight == 9

    person = ticket("people", band=Band.INTERACTIVE)
    lane.enqueue(person, 0)

    assert lane.start_next(0) is person


def test_without_ready_slots_nobody_is_refused_for_the_deadline() -> None:
    lane = Lane(queue_max=100, limit=0, service_s=1.0)

    assert lane.enqueue(ticket(deadline=0.5), 0) is None


def test_expired_and_old_tickets_are_found() -> None:
    lane = Lane(queue_max=100)
    early, late = ticket(deadline=1, arrived=0), ticket(deadline=9, arrived=5)
    lane.enqueue(early, 0)
    lane.enqueue(late, 5)

    assert lane.expired(1.0) == [early]
    assert lane.waiting_since_before(5.0) == [early]
    assert lane.withdraw(early)
    assert not lane.withdraw(early)
    assert lane.waiting == 1


operations = st.lists(
    st.tuples(st.sampled_from(["arrive", "finish", "withdraw", "limit"]), st.integers(0, 12)),
    max_size=80,
)


def could_start(lane: Lane, started: list[Ticket], band: Band) -> bool:
    below = sum(1 for ticket in started if ticket.band >= band)
    kept = holdback(band, lane.limit)
    return lane.in_flight < lane.limit and (not kept or below < lane.limit - kept)


@given(operations)
def test_counts_always_agree_and_the_limit_holds(steps: list[tuple[str, int]]) -> None:
    lane = Lane(queue_max=6, limit=2)
    waiting: set[Ticket] = set()
    started: list[Ticket] = []
    for now, (what, number) in enumerate(steps):
        if what == "arrive":
            new = ticket(f"t{number % 4}", deadline=1e9, band=Band(number % 3))
            if lane.try_start(new, now):
                started.append(new)
            else:
                outcome = lane.enqueue(new, now)
                if not isinstance(outcome, Full):
                    waiting.add(new)
                if isinstance(outcome, Ticket):
                    waiting.discard(outcome)
        elif what == "finish" and started:
            lane.finish(started.pop(), now, number * 1.5)
        elif what == "withdraw" and waiting:
            assert lane.withdraw(waiting.pop())
        elif what == "limit":
            lane.limit = number
        before = lane.in_flight
        while (following := lane.start_next(now)) is not None:
            waiting.remove(following)
            started.append(following)
        assert lane.in_flight == len(started)
        assert lane.waiting == len(waiting) <= lane.queue_max
        assert lane.in_flight <= max(lane.limit, before)
        assert not any(could_start(lane, started, ticket.band) for ticket in waiting)
