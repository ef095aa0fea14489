"""Which region gets a request, and which one is avoided for a while."""

from __future__ import annotations

import pytest
from busbar_gateway.domain.attempts import UNTAKEN_S
from busbar_gateway.domain.regions import (
    AVOIDED_FIRST_S,
    AVOIDED_LONGEST_S,
    Outstanding,
    choose_region,
)
from busbar_gateway.domain.routes import Target

NOW = 1000.0
BOTH = (Target("r1", 2), Target("r2", 2))
ALL = {"r1": 1.0, "r2": 1.0}
"""This gateway may fill every slot."""


def out(**in_flight: int) -> Outstanding:
    """As many of the model `m` out there, by region."""
    outstanding = Outstanding("r1")
    for region, count in in_flight.items():
        for _ in range(count):
            outstanding.sent("m", region)
    return outstanding


def test_the_own_region_serves_while_it_has_a_free_slot() -> None:
    targets = [Target("r1", 2), Target("r2", 8), Target("r3", 0)]

    assert choose_region(targets, "r1", {"r1": 1}) == "r1"
    assert choose_region(targets, "r1", {"r1": 2}) == "r2"
    assert choose_region(targets, "r1", {"r1": 2, "r2": 12}) == "r1"
    assert choose_region([Target("r3", 0)], "r3", {}) is None


def test_the_nearest_region_with_a_free_slot_is_next() -> None:
    targets = [Target("r1", 2), Target("r2", 4), Target("r3", 8), Target("r4", 9)]

    def chosen(**in_flight: int) -> str | None:
        return choose_region(targets, "r1", in_flight, nearest=["r3", "r2"])

    assert chosen() == "r1"
    assert chosen(r1=2) == "r3"
    assert chosen(r1=2, r3=8) == "r2"
    assert chosen(r1=2, r3=8, r2=4) == "r4"
    assert chosen(r1=2, r3=8, r2=4, r4=10) == "r1"


def test_only_the_own_part_of_the_slots_is_filled() -> None:
    targets = [Target("r1", 8), Target("r2", 8)]
    shares = {"r1": 0.25, "r2": 0.5}

    assert choose_region(targets, "r1", {"r1": 1}, shares=shares) == "r1"
    assert choose_region(targets, "r1", {"r1": 2}, shares=shares) == "r2"


def test_what_is_out_in_one_queue_takes_no_slot_of_another() -> None:
    outstanding = out(r1=2)

    assert outstanding.choose("m", BOTH, ALL, NOW) == "r2"
    assert outstanding.choose("another", BOTH, ALL, NOW) == "r1"


def test_what_is_back_is_forgotten() -> None:
    outstanding = out(r1=2)
    outstanding.back("m", "r1")

    assert outstanding.choose("m", BOTH, ALL, NOW) == "r1"


def test_a_region_that_took_nothing_is_avoided_for_a_while() -> None:
    outstanding = out()
    outstanding.not_taken("m", "r1", NOW)

    assert outstanding.choose("m", BOTH, ALL, NOW + AVOIDED_FIRST_S - 0.1) == "r2"
    assert outstanding.choose("m", BOTH, ALL, NOW + AVOIDED_FIRST_S + 0.1) == "r1"
    assert outstanding.choose("another", BOTH, ALL, NOW) == "r1"


def test_a_region_is_avoided_for_longer_each_time_up_to_a_bound() -> None:
    outstanding, now, waits = out(), NOW, list[float]()
    for _ in range(6):
        outstanding.not_taken("m", "r1", now)
        began = now
        while outstanding.choose("m", BOTH, ALL, now) != "r1":
            now += 0.5
        waits.append(now - began)

    assert waits == [3.0, 6.0, 12.0, AVOIDED_LONGEST_S, AVOIDED_LONGEST_S, AVOIDED_LONGEST_S]


def test_reports_of_what_was_sent_before_do_not_lengthen_it() -> None:
    outstanding = out()
    for later_s in (0.0, 0.5, 1.0):
        outstanding.not_taken("m", "r1", NOW + later_s)

    assert outstanding.choose("m", BOTH, ALL, NOW + AVOIDED_FIRST_S) == "r1"


def test_a_busy_region_is_not_avoided() -> None:
    outstanding = out()
    outstanding.heard("m", "r1", NOW)
    outstanding.not_taken("m", "r1", NOW + UNTAKEN_S - 0.1)
    busy = outstanding.choose("m", BOTH, ALL, NOW + UNTAKEN_S - 0.1)
    outstanding.not_taken("m", "r1", NOW + UNTAKEN_S + 0.1)

    assert busy == "r1"
    assert outstanding.choose("m", BOTH, ALL, NOW + UNTAKEN_S + 0.1) == "r2"


def test_a_region_is_avoided_until_one_of_its_nodes_is_heard() -> None:
    outstanding = out()
    outstanding.not_taken("m", "r1", NOW)
    outstanding.heard("another", "r1", NOW)
    before = outstanding.choose("m", BOTH, ALL, NOW)
    outstanding.heard("m", "r1", NOW)

    assert before == "r2"
    assert outstanding.choose("m", BOTH, ALL, NOW) == "r1"
    assert outstanding.elsewhere("m", BOTH, ALL, "r2", NOW) == "r1"


def test_a_region_whose_stream_is_gone_is_avoided_although_a_node_was_heard() -> None:
    outstanding = out()
    outstanding.heard("m", "r1", NOW)
    outstanding.not_reached("m", "r1", NOW)

    assert outstanding.choose("m", BOTH, ALL, NOW) == "r2"


def test_the_only_region_that_is_ready_is_used_although_it_is_avoided() -> None:
    outstanding = out()
    outstanding.not_taken("m", "r1", NOW)

    assert outstanding.choose("m", (Target("r1", 2), Target("r2", 0)), ALL, NOW) == "r1"
    assert outstanding.choose("m", (Target("r1", 2),), ALL, NOW) == "r1"


def test_only_what_still_decides_is_remembered() -> None:
    outstanding = out()
    outstanding.heard("m", "r1", NOW)
    outstanding.not_taken("n", "r1", NOW)
    counts = list[int]()
    for later_s in (UNTAKEN_S - 0.1, UNTAKEN_S, 2 * AVOIDED_FIRST_S - 0.1, 2 * AVOIDED_FIRST_S):
        outstanding.forget_what_is_over(NOW + later_s)
        counts.append(outstanding.remembered_count)

    assert counts == [2, 1, 1, 0]


@pytest.mark.parametrize(
    ("in_flight", "targets", "elsewhere"),
    [
        pytest.param({"r2": 1}, BOTH, "r2", id="a-slot-is-free"),
        pytest.param({"r2": 2}, BOTH, None, id="no-slot-is-free"),
        pytest.param({"r2": 2}, (Target("r2", 2),), "r2", id="its-region-is-no-longer-ready"),
        pytest.param({"r2": 2}, (Target("r1", 0), Target("r2", 2)), "r2", id="its-region-is-empty"),
        pytest.param({}, (Target("r1", 2),), None, id="there-is-no-other"),
        pytest.param({}, (), None, id="nothing-is-ready"),
    ],
)
def test_work_that_nobody_takes_goes_where_it_can_be_served(
    in_flight: dict[str, int], targets: tuple[Target, ...], elsewhere: str | None
) -> None:
    assert out(r1=1, **in_flight).elsewhere("m", targets, ALL, "r1", NOW) == elsewhere


def test_work_goes_back_to_no_region_that_took_nothing() -> None:
    outstanding = out(r2=1)
    outstanding.not_taken("m", "r1", NOW)

    assert outstanding.elsewhere("m", BOTH, ALL, "r2", NOW) is None


def test_after_a_silent_node_another_region_is_tried_first() -> None:
    assert out().choose("m", BOTH, ALL, NOW, avoiding="r1") == "r2"
    assert out(r2=2).choose("m", BOTH, ALL, NOW, avoiding="r1") == "r1"
