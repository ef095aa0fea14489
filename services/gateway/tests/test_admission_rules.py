"""Who may be dispatched, who waits, who is refused."""

from __future__ import annotations

import pytest
from busbar_gateway.domain.admission import Full, Lane, Ticket, share_of_slots
from hypothesis import given
from hypothesis import strategies as st


def ticket(tenant: str = "a", deadline: float = 100.0, arrived: float = 0.0) -> Ticket:
    return Ticket(tenant, deadline, arrived)


@pytest.mark.parametrize(
    ("ready_slots", "gateways", "share"),
    [(0, 1, 0), (0, 3, 0), (8, 1, 11), (8, 2, 6), (1, 1, 3), (1, 4, 2), (4, 0, 6)],
)
def test_a_gateway_takes_its_part_of_the_slots_and_a_little_more(
    ready_slots: int, gateways: int, share: int
) -> None:
    assert share_of_slots(ready_slots, gateways) == share


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
        lane.release()

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
    st.tuples(st.sampled_from(["arrive", "finish", "withdraw", "limit"]), st.integers(0, 4)),
    max_size=80,
)


@given(operations)
def test_counts_always_agree_and_the_limit_holds(steps: list[tuple[str, int]]) -> None:
    lane = Lane(queue_max=6, limit=2)
    waiting: set[Ticket] = set()
    started: list[Ticket] = []
    for now, (what, number) in enumerate(steps):
        if what == "arrive":
            new = ticket(f"t{number}", deadline=1e9)
            if lane.try_start(new, now):
                started.append(new)
            else:
                outcome = lane.enqueue(new, now)
                if not isinstance(outcome, Full):
                    waiting.add(new)
                if isinstance(outcome, Ticket):
                    waiting.discard(outcome)
        elif what == "finish" and started:
            lane.finish(started.pop(), now)
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
        assert not waiting or lane.in_flight >= lane.limit
