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
from busbar_scheduler.domain.troubles import Troubles

NODE = "r1.s1.n1"
FRESH_S = 4.0
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


def judged_by_gateways(reports: list[tuple[float, str, int]], until_s: int) -> list[str]:
    """What is held against a node that is well, each second, given when each gateway counted
    how many that it lost there."""
    troubles, suspicions, reasons = Troubles(FRESH_S), Suspicions(), list[str]()
    for second in range(until_s):
        for revision, (at, gateway, lost) in enumerate(reports, start=1):
            if second <= at < second + 1:
                troubles.heard(gateway, "run", revision, {NODE: (lost, 0)}, at)
        lost_counts, _ = troubles.look(second + 1.0)
        vitals = replace(WELL, lost_count=lost_counts.get(NODE, 0))
        reasons.append(suspicions.look({NODE: vitals}, second + 1.0).get(NODE, ""))
    return reasons


def each_second(gateway: str, counts: list[int], begin: int = 0) -> list[tuple[float, str, int]]:
    return [(float(at), gateway, lost) for at, lost in enumerate(counts, start=begin)]


@pytest.mark.parametrize(
    "reports",
    [
        [*each_second("g1", [0, 3] + [3] * 8), *each_second("g1", [3] * 20, begin=15)],
        [*each_second("g1", [0] * 10), *each_second("g1", [4] * 20, begin=16)],
        each_second("g1", [9] * 30),
    ],
    ids=["a count of before", "what was lost meanwhile", "what was counted before we listened"],
)
def test_what_a_gateway_counted_unheard_is_held_against_nobody(
    reports: list[tuple[float, str, int]],
) -> None:
    alive = each_second("g2", [0] * 40)

    assert judged_by_gateways(reports + alive, 40) == [""] * 40


@pytest.mark.parametrize(
    ("counts", "broken"),
    [
        ([0] * 8 + [1, 2] + [3] * 20, True),
        ([9] * 8 + [0, 1, 2] + [3] * 20, True),
        ([0] * 8 + [3], False),
    ],
    ids=["heard all along", "after a good answer", "silent since"],
)
def test_what_it_counts_while_it_is_heard_is(counts: list[int], *, broken: bool) -> None:
    assert any(judged_by_gateways(each_second("g1", counts), 40)) == broken


def test_a_report_that_is_read_again_is_no_sign_of_life() -> None:
    troubles = Troubles(FRESH_S)
    troubles.heard("g1", "run", 1, {NODE: (0, 0)}, 0.0)
    troubles.heard("g1", "run", 2, {NODE: (3, 5)}, 1.0)
    troubles.heard("g1", "run", 2, {NODE: (3, 5)}, 20.0)

    assert troubles.look(2.0) == ({NODE: 3}, {NODE: 5})
    assert troubles.look(20.5) == ({}, {})


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
