"""Who is kept out, for how long, and who is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from busbar_scheduler.domain.fleet import Order, Site
from busbar_scheduler.domain.orders import Described, Told
from busbar_scheduler.domain.quarantine import (
    APART_MS,
    FIRST_MS,
    LONGEST_MS,
    Suspicions,
    Vitals,
    room_for_one_more,
    sentence,
)

NODE = "r1.s1.n1"
WELL = Vitals(run_id="run1", well=True)
SITE = Described(Site("r1.s1"))


def judged(history: list[tuple[float, Vitals]]) -> list[str]:
    """What is held against the node at each moment."""
    suspicions = Suspicions()
    return [suspicions.look({NODE: vitals}, now).get(NODE, "") for now, vitals in history]


@pytest.mark.parametrize(
    ("later", "word"),
    [
        (replace(WELL, lost_count=3), "fell silent about 3"),
        (replace(WELL, garbled_count=5), "5 of its answers"),
        (replace(WELL, tritons_lost=3, triton_reason="signal 9"), "lost 3 times within 5 minutes"),
    ],
    ids=["silent", "garbled", "tritons"],
)
def test_a_node_that_lives_and_fails_is_broken(later: Vitals, word: str) -> None:
    reasons = judged([(0.0, WELL), (5.0, WELL), (6.0, later), (11.0, later)])

    assert reasons[:2] == ["", ""]
    assert word in reasons[3]


@pytest.mark.parametrize(
    "history",
    [
        [(0.0, WELL), (6.0, replace(WELL, lost_count=2))],
        [(0.0, WELL), (6.0, replace(WELL, garbled_count=4))],
        [(0.0, replace(WELL, lost_count=9)), (6.0, replace(WELL, lost_count=9))],
        [(0.0, WELL), (6.0, replace(WELL, well=False, lost_count=9))],
        [(0.0, WELL), (6.0, replace(WELL, run_id="run2", lost_count=9))],
        [(0.0, WELL), (4.0, replace(WELL, lost_count=9)), (20.0, replace(WELL, lost_count=9))],
        [
            (0.0, WELL),
            *((at, replace(WELL, lost_count=9)) for at in (6.0, 10.9)),
            (11.0, replace(WELL, well=False, lost_count=9)),
            *((at, replace(WELL, lost_count=9)) for at in (13.0, 19.0, 29.0)),
        ],
        [(at * 151.0, replace(WELL, tritons_lost=at)) for at in range(8)],
    ],
    ids=[
        "two-lost",
        "four-garbled",
        "old",
        "silent",
        "restarted",
        "not-settled",
        "died-and-came-back-as-it-was",
        "rare-crashes",
    ],
)
def test_who_died_or_failed_now_and_then_is_not(history: list[tuple[float, Vitals]]) -> None:
    assert judged(history) == [""] * len(history)


def test_a_good_answer_between_starts_the_count_again() -> None:
    lost = [replace(WELL, lost_count=count) for count in (0, 0, 2, 0, 2, 3, 3)]

    reasons = judged([(at * 5.0, vitals) for at, vitals in enumerate(lost)])

    assert [bool(reason) for reason in reasons] == [False] * 6 + [True]


def test_silence_that_ends_before_its_lease_would_have_is_forgiven() -> None:
    lost = [replace(WELL, lost_count=count) for count in (0, 0, 9, 0, 9)]

    reasons = judged([(at * 5.0, vitals) for at, vitals in enumerate(lost)])

    assert reasons == [""] * len(lost)


def test_the_first_quarantine_is_short_and_each_further_one_twice_as_long() -> None:
    described, now = SITE, 1_000_000
    lasted = list[int]()
    for _ in range(8):
        told = sentence(described, "n1", "broken", now)
        assert told is not None
        assert told.at(now + told.grace_ms - 1) is Order.QUARANTINE
        assert told.at(now + told.grace_ms) is Order.SERVE
        lasted.append(told.grace_ms)
        described = described.telling("n1", told)
        assert sentence(described, "n1", "broken", now + 1) is None
        now += told.grace_ms + 1_000

    assert lasted == [min(FIRST_MS * 2**times, LONGEST_MS) for times in range(8)]


def test_a_long_good_time_is_remembered() -> None:
    told = Told(Order.QUARANTINE, 0, 4 * FIRST_MS, "broken")
    again = sentence(SITE.telling("n1", told), "n1", "broken", 100 * FIRST_MS)

    assert again is not None
    assert again.grace_ms == FIRST_MS


@pytest.mark.parametrize("order", [Order.CORDON, Order.DRAIN])
def test_what_an_operator_said_stands(order: Order) -> None:
    described = SITE.telling("n1", Told(order, 0, 1_000, "fans"))

    assert sentence(described, "n1", "broken", 10**9) is None


def test_not_all_of_a_site_goes_at_once() -> None:
    one_out = SITE.telling("n1", Told(Order.QUARANTINE, 0, LONGEST_MS, "broken"))

    assert room_for_one_more(SITE, 1, 0)
    assert not room_for_one_more(one_out, 40, APART_MS - 1)
    assert room_for_one_more(one_out, 8, APART_MS)
    assert not room_for_one_more(one_out, 7, APART_MS)
    assert room_for_one_more(one_out, 1, LONGEST_MS)
