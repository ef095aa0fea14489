"""Telling the time by what the stream says of each delivery."""

from __future__ import annotations

import pytest
from busbar_node_agent.adapters.puller import stored_at
from busbar_node_agent.domain.bus_time import WINDOW_S, BusTime
from hypothesis import given
from hypothesis import strategies as st

UNIX_S = 1_795_000_000.0
"""The bus's time when the monotonic clock shows 0."""
WRONG_S = UNIX_S + 3600


def told(deliveries: list[tuple[float, float]]) -> BusTime:
    """After deliveries, each at a moment and after so long a wait."""
    time = BusTime()
    for at_s, waited_s in deliveries:
        time.stored(UNIX_S + at_s - waited_s, at_s)
    return time


@pytest.mark.parametrize(
    ("deliveries", "now_s", "behind_s"),
    [
        ([(1.0, 0.001)], 5.0, 0.001),
        ([(1.0, 8.0), (2.0, 0.002), (3.0, 4.0)], 5.0, 0.002),
        ([(1.0, 8.0)], 5.0, 8.0),
        ([(1.0, 0.0), (WINDOW_S + 2, 3.0)], WINDOW_S + 3, 0.0),
        ([(1.0, 0.0), (3 * WINDOW_S, 3.0)], 3 * WINDOW_S, 3.0),
    ],
    ids=["at-once", "the-shortest-wait", "all-waited", "the-window-before", "long-ago"],
)
def test_the_time_is_that_of_what_waited_least(
    deliveries: list[tuple[float, float]], now_s: float, behind_s: float
) -> None:
    shown = told(deliveries).unix_s(now_s, otherwise=WRONG_S)

    assert shown == pytest.approx(UNIX_S + now_s - behind_s)


def test_before_anything_came_it_is_what_the_node_thinks() -> None:
    assert BusTime().unix_s(1.0, otherwise=WRONG_S) == WRONG_S


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 60)), min_size=1, max_size=50))
def test_it_is_never_later_than_the_bus_so_nothing_expires_too_soon(
    steps: list[tuple[float, float]],
) -> None:
    time, now_s = BusTime(), 0.0
    for step_s, waited_s in steps:
        now_s += step_s
        time.stored(UNIX_S + now_s - waited_s, now_s)

        assert time.unix_s(now_s, otherwise=WRONG_S) <= UNIX_S + now_s + 1e-5


@pytest.mark.parametrize(
    ("reply", "stored_s"),
    [
        (b"$JS.ACK.WORK_r1.work-m.1.5.5.1795000000500000000.0", UNIX_S + 0.5),
        (b"$JS.ACK.hub.ACC.WORK_r1.work-m.1.5.5.1795000000500000000.0", UNIX_S + 0.5),
        (b"$JS.ACK.hub.ACC.WORK_r1.work-m.1.5.5.1795000000500000000.0.r4nd", UNIX_S + 0.5),
        (b"$JS.ACK.WORK_r1", None),
        (b"$JS.ACK.WORK_r1.work-m.1.5.5.soon.0", None),
    ],
    ids=["plain", "with-domain", "with-a-random-end", "short", "no-number"],
)
def test_when_a_delivery_was_stored_stands_in_its_reply(
    reply: bytes, stored_s: float | None
) -> None:
    assert stored_at(reply) == stored_s
