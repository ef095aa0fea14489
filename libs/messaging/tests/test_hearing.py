"""Silence counts only while something is heard."""

from __future__ import annotations

import pytest
from busbar_messaging.hearing import DEAF_AFTER_S, GRACE_S, HearingClock


def shown(heard_at: list[float]) -> float:
    """What the clock shows after something was heard at these times."""
    clock = HearingClock()
    for at in heard_at:
        clock.hear(at)
    return clock.now_s


@pytest.mark.parametrize(
    ("heard_at", "shows_s"),
    [
        ([], 0.0),
        ([50.0], 0.0),
        ([50.0, 51.0, 52.0, 54.5], 4.5),
        ([50.0, 52.6], 0.0),
        ([50.0, 60.0, 61.0, 62.9], 0.0),
        ([50.0, 60.0, 62.0, 64.0, 66.0], 3.0),
        ([50.0, 51.0, 90.0, 92.0, 94.0], 2.0),
        ([50.0, 60.0, 70.0, 80.0], 0.0),
    ],
    ids=[
        "nothing",
        "once",
        "steadily",
        "too-long-between",
        "within-the-grace",
        "beyond-the-grace",
        "what-was-counted-stands",
        "never-for-long",
    ],
)
def test_it_goes_while_something_is_heard(heard_at: list[float], shows_s: float) -> None:
    assert shown(heard_at) == pytest.approx(shows_s)


def test_it_tells_for_how_long_nothing_could_be_heard() -> None:
    clock = HearingClock()

    assert [clock.hear(at) for at in (10.0, 11.0, 20.0, 20.5)] == [0.0, 0.0, 9.0, 0.0]


def test_it_is_deaf_until_something_is_heard_and_again_after_too_long() -> None:
    clock = HearingClock()
    before = clock.is_deaf(10.0)
    clock.hear(10.0)

    assert before
    assert not clock.is_deaf(10.0 + DEAF_AFTER_S)
    assert clock.is_deaf(10.1 + DEAF_AFTER_S)


def test_it_says_when_it_may_show_what() -> None:
    clock = HearingClock()
    clock.hear(10.0)
    clock.hear(12.0)
    steadily = clock.shows_at_s(5.0)
    clock.hear(30.0)

    assert steadily == pytest.approx(15.0)
    assert clock.shows_at_s(5.0) == pytest.approx(30.0 + GRACE_S + 3.0)
