"""Rates from growing counters."""

from __future__ import annotations

import pytest
from busbar_telemetry.domain.rates import Counters, CounterWindow, Rates


def steady(window: CounterWindow, seconds: int, per_s: int) -> None:
    for second in range(1, seconds + 1):
        window.grow(Counters(completed=per_s, output_tokens=10 * per_s), float(second))


def test_a_steady_flow_has_the_same_rate_over_both_windows() -> None:
    window = CounterWindow(0.0)
    steady(window, 120, per_s=7)

    for seconds in (10.0, 60.0):
        rates = window.rates(seconds, 120.0)
        assert rates.completed_per_s == pytest.approx(7)
        assert rates.output_tokens_per_s == pytest.approx(70)


def test_a_flow_that_stopped_leaves_the_short_window_before_the_long_one() -> None:
    window = CounterWindow(0.0)
    steady(window, 60, per_s=6)

    assert window.rates(10.0, 75.0) == Rates()
    assert window.rates(60.0, 75.0).completed_per_s == pytest.approx(6 * 45 / 60)
    assert window.rates(60.0, 200.0) == Rates()


def test_a_short_history_is_not_diluted_by_the_time_before_it() -> None:
    window = CounterWindow(100.0)
    steady_from = [(101.0 + n) for n in range(4)]
    for now_s in steady_from:
        window.grow(Counters(completed=5), now_s)

    assert window.rates(60.0, 104.0).completed_per_s == pytest.approx(5)


def test_the_window_holds_no_more_than_a_sample_a_second() -> None:
    window = CounterWindow(0.0)
    for step in range(20_000):
        window.grow(Counters(completed=1), step / 100)

    assert window.sample_count <= 62
    assert window.rates(10.0, 200.0).completed_per_s == pytest.approx(100, rel=0.15)


def test_a_counter_that_went_back_started_again() -> None:
    assert Counters(completed=3).since(Counters(completed=100)) == Counters(completed=3)
    assert Counters(completed=103).since(Counters(completed=100)) == Counters(completed=3)
