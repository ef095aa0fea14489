"""Telling the time by the bus when our own clock is off."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from busbar_gateway.adapters.bus_clock import BusClock
from busbar_messaging.bucket_changes import unix_ns_of

HOUR_NS = 3_600 * 10**9
NOW_NS = 1_795_000_000 * 10**9


@dataclass
class Hands:
    """A clock that is `ahead_ns` of the server's, and moves when told."""

    ahead_ns: int
    elapsed_s: float = 0.0
    observed: list[float] = field(default_factory=list[float])

    def clock(self) -> BusClock:
        return BusClock(
            unix_ns=lambda: self.server_ns() + self.ahead_ns,
            monotonic=lambda: self.elapsed_s,
            observe=self.observed.append,
        )

    def server_ns(self) -> int:
        return NOW_NS + round(self.elapsed_s * 10**9)


def beat(clock: BusClock, hands: Hands, mark: int, way_s: float = 0.004) -> None:
    """One heartbeat to the server and back."""
    clock.sent(mark)
    hands.elapsed_s += way_s / 2
    stored_ns = hands.server_ns()
    hands.elapsed_s += way_s / 2
    clock.echoed(mark, stored_ns)


@pytest.mark.parametrize("ahead_ns", [HOUR_NS, -HOUR_NS, 3 * 10**9])
def test_a_clock_that_is_off_is_corrected_with_the_first_heartbeat(ahead_ns: int) -> None:
    hands = Hands(ahead_ns)
    clock = hands.clock()
    before = clock.unix_ns()
    beat(clock, hands, 1)

    assert before == NOW_NS + ahead_ns
    assert clock.measured
    assert abs(clock.unix_ns() - hands.server_ns()) < 5 * 10**6
    assert abs(clock.unix_s() - hands.server_ns() / 10**9) < 0.01
    assert hands.observed[0] == pytest.approx(ahead_ns / 10**9, abs=0.01)


@pytest.mark.parametrize("ahead_ns", [0, 10**9, -(10**9)])
def test_a_clock_that_agrees_stays_its_own(ahead_ns: int) -> None:
    hands = Hands(ahead_ns)
    clock = hands.clock()
    beat(clock, hands, 1)

    assert clock.measured
    assert clock.unix_ns() == hands.server_ns() + ahead_ns


def test_a_clock_that_was_set_right_is_its_own_again() -> None:
    hands = Hands(HOUR_NS)
    clock = hands.clock()
    beat(clock, hands, 1)
    hands.ahead_ns = 0
    beat(clock, hands, 2)

    assert clock.unix_ns() == hands.server_ns()


def test_what_took_long_or_was_left_behind_measures_nothing() -> None:
    hands = Hands(HOUR_NS)
    clock = hands.clock()
    beat(clock, hands, 1, way_s=2.0)
    clock.sent(2)
    clock.echoed(1, NOW_NS - HOUR_NS)

    assert not clock.measured
    assert clock.unix_ns() == hands.server_ns() + HOUR_NS


def test_a_moment_of_the_server_is_kept_to_the_microsecond() -> None:
    moment = datetime(2026, 11, 21, 7, 0, 0, 123_456, tzinfo=UTC)

    assert unix_ns_of(moment) % 10**9 == 123_456_000
