"""What is likely to be asked soon, from what was asked at this time before."""

from __future__ import annotations

import math
from random import Random

import pytest
from busbar_scheduler.domain.forecasting import History, Season
from hypothesis import given, settings
from hypothesis import strategies as st

DAY = 1_440


def office_hours(minute: int) -> float:
    """Ten requests at once from nine to five, one otherwise."""
    return 10.0 if 9 * 60 <= minute % DAY < 17 * 60 else 1.0


def learned(days: float, load: float = 1.0, noise: float = 0.0) -> History:
    history, dice = History(), Random(1)
    for minute in range(int(days * DAY)):
        history.learn(minute, max(0.0, load * office_hours(minute) + dice.gauss(0, noise)))
    return history


@pytest.mark.parametrize(
    ("at", "expected"),
    [(8 * 60 + 50, 1), (8 * 60 + 57, 10), (12 * 60, 10), (16 * 60 + 59, 1), (22 * 60, 1)],
)
def test_the_next_morning_is_foreseen(at: int, expected: float) -> None:
    history = learned(4)
    for minute in range(4 * DAY, 4 * DAY + at + 1):
        history.learn(minute, office_hours(minute))

    assert history.forecast(4 * DAY + at, 3) == pytest.approx(expected, rel=0.05)


def test_a_busier_day_is_foreseen_at_its_own_level() -> None:
    history = learned(4)
    noon = 4 * DAY + 12 * 60
    for minute in range(4 * DAY, noon):
        history.learn(minute, 1.4 * office_hours(minute))

    assert history.forecast(noon - 1, 3) == pytest.approx(14, rel=0.05)


@pytest.mark.parametrize(
    ("weekday", "expected"), [(0, 10), (1, 10), (5, 1)], ids=["Monday", "Tuesday", "Saturday"]
)
def test_after_a_quiet_weekend_monday_is_foreseen(weekday: int, expected: float) -> None:
    history, at = History(), (2 * 7 + weekday) * DAY + 9 * 60 - 3
    for minute in range(at + 1):
        works = minute // DAY % 7 < 5
        history.learn(minute, office_hours(minute) if works else 1.0)

    foreseen = history.forecast(at, 3)
    day, week = history.seasons[1].highest(at, 3), history.seasons[2].highest(at, 3)
    assert week == pytest.approx(expected, rel=0.05)
    assert day is not None
    if weekday == 0:
        assert day < 6
        assert foreseen == week


def test_before_two_days_nobody_knows() -> None:
    history = learned(1.3)

    assert history.forecast(int(1.3 * DAY), 3) is None


def test_noise_is_not_taken_for_a_season() -> None:
    history, dice = History(), Random(2)
    for minute in range(3 * DAY):
        history.learn(minute, 5 + dice.gauss(0, 1))

    assert history.forecast(3 * DAY, 3) is None


def test_a_season_that_ends_is_given_up() -> None:
    history = learned(4)
    assert history.forecast(4 * DAY + 8 * 60 + 58, 3) is not None
    for minute in range(4 * DAY, 7 * DAY):
        history.learn(minute, 1.0)

    found = history.forecast(7 * DAY + 8 * 60 + 58, 3)
    assert found is None or found < 3


def test_minutes_that_were_missed_shift_nothing() -> None:
    history = learned(4)
    for minute in range(4 * DAY + 300, 5 * DAY + 8 * 60 + 57):
        history.learn(minute, office_hours(minute))

    assert history.forecast(5 * DAY + 8 * 60 + 57, 3) == pytest.approx(10, rel=0.05)


@settings(max_examples=25)
@given(
    pattern=st.lists(st.floats(0, 1_000), min_size=60, max_size=60),
    ahead_min=st.integers(1, 30),
    at=st.integers(0, 59),
)
def test_what_comes_each_hour_is_foreseen_where_anything_is(
    pattern: list[float], ahead_min: int, at: int
) -> None:
    history = History()
    for minute in range(5 * 60 + at + 1):
        history.learn(minute, pattern[minute % 60])
    found = history.forecast(5 * 60 + at, ahead_min)

    actual = max(pattern[(at + 1 + ahead) % 60] for ahead in range(ahead_min))
    assert found is None or found == pytest.approx(actual, rel=0.02, abs=0.01)


@settings(max_examples=25)
@given(
    loads=st.lists(st.floats(0, 10_000), min_size=1, max_size=400),
    ahead_min=st.integers(1, 2_000),
)
def test_a_forecast_is_never_absurd(loads: list[float], ahead_min: int) -> None:
    history = History()
    for minute, load in enumerate(loads):
        history.learn(minute, load)
    found = history.forecast(len(loads) - 1, ahead_min)

    assert found is None or 0 <= found <= 1.5 * max(loads) * 1.001


def test_a_season_forgets_by_its_weight() -> None:
    season = Season(60, weight=0.5)
    for period, load in enumerate((8.0, 4.0, 0.0)):
        season.learn(period * 60, load)

    assert season.expected(0) == pytest.approx(3.0)
    assert season.expected(1) is None
    assert not math.isnan(season.error)
