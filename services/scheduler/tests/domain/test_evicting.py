"""Nodes that are gone lose what they hold, but not all of a site or a region at once."""

from __future__ import annotations

from collections import Counter

from busbar_scheduler.domain.evicting import (
    REGION_SHARE,
    RETURN_SHARE,
    SITE_SHARE,
    WINDOW_S,
    Evictions,
    Returns,
)
from hypothesis import given
from hypothesis import strategies as st

EVICT_S = 60.0


def nodes(region: str, site: str, count: int) -> list[str]:
    return [f"{region}.{site}.n{at}" for at in range(count)]


def silent(gone: list[str], silent_s: float = EVICT_S) -> dict[str, float]:
    return dict.fromkeys(gone, silent_s)


def test_a_node_that_is_gone_is_let_go_at_once() -> None:
    fleet = nodes("r1", "s1", 1) + nodes("r1", "s2", 4)

    assert Evictions().look(silent(fleet[:1]), fleet, fleet, 0.0) == {"r1.s1.n0"}


def test_a_dark_site_is_given_up_a_quarter_at_a_time() -> None:
    fleet = nodes("r1", "s1", 8) + nodes("r1", "s2", 72)
    gone, evictions = fleet[:8], Evictions()
    course = [len(evictions.look(silent(gone), fleet, fleet, at * 5.0)) for at in range(13)]

    assert course == [2, 2, 2, 4, 4, 4, 6, 6, 6, 8, 8, 8, 8]


def test_a_dark_region_is_given_up_a_tenth_at_a_time() -> None:
    dark = [one for site in range(10) for one in nodes("r1", f"s{site}", 8)]
    fleet = dark + nodes("r2", "s1", 40)
    evictions = Evictions()
    course = [len(evictions.look(silent(dark), fleet, fleet, at * WINDOW_S)) for at in range(15)]
    at_once = [after - before for before, after in zip([0, *course], course, strict=False)]

    assert course[:5] == [8, 16, 24, 32, 40]
    assert max(at_once) == 8
    assert course[-1] == 80


def test_the_longest_silent_goes_first_and_others_regions_do_not_wait() -> None:
    fleet = nodes("r1", "s1", 4) + nodes("r2", "s2", 4)
    overdue = {"r1.s1.n0": 61.0, "r1.s1.n1": 65.0, "r2.s2.n3": 60.0}

    assert Evictions().look(overdue, fleet, fleet, 0.0) == {"r1.s1.n1", "r2.s2.n3"}


def test_who_comes_back_in_time_loses_nothing() -> None:
    fleet, evictions = nodes("r1", "s1", 8), Evictions()
    first = evictions.look(silent(fleet), fleet, fleet, 0.0)
    after = evictions.look({}, fleet, fleet, WINDOW_S)

    assert len(first) == 1
    assert after == set()


def test_nodes_that_hold_nothing_are_given_up_without_waiting() -> None:
    fleet = nodes("r1", "s1", 8)

    assert Evictions().look(silent(fleet), fleet, fleet[:1], 0.0) == set(fleet)


@given(
    st.dictionaries(
        st.builds("r{}.s{}.n{}".format, *(st.integers(0, most) for most in (2, 3, 9))),
        st.floats(60, 500),
        min_size=1,
        max_size=60,
    ),
    st.lists(st.floats(0.1, 20.0), min_size=1, max_size=20),
)
def test_no_window_sees_more_than_its_share_and_in_the_end_all_are_given_up(
    overdue: dict[str, float], steps: list[float]
) -> None:
    fleet, evictions, now, before = list(overdue), Evictions(), 0.0, frozenset[str]()
    let_go = list[tuple[float, str]]()
    for step in [*steps, *[WINDOW_S] * len(overdue)]:
        now += step
        gone = evictions.look(overdue, fleet, fleet, now)
        let_go += [(now, node) for node in gone - before]
        before = gone

    assert before == set(overdue)
    for at, _ in let_go:
        within = [node for moment, node in let_go if at <= moment < at + WINDOW_S]
        for depth, share in ((2, SITE_SHARE), (1, REGION_SHARE)):
            per_place = Counter(".".join(node.split(".")[:depth]) for node in within)
            there = Counter(".".join(node.split(".")[:depth]) for node in fleet)
            assert all(per_place[one] <= -(-there[one] // share) for one in per_place)


def test_a_site_that_comes_back_is_used_a_quarter_at_a_time() -> None:
    fleet = nodes("r1", "s1", 8) + nodes("r1", "s2", 72)
    site, returns = fleet[:8], Returns()
    returns.look(site, fleet[8:], 0.0)
    waiting = [len(returns.look([], fleet, 700.0 + at * 5.0)) for at in range(11)]

    assert waiting == [6, 6, 6, 4, 4, 4, 2, 2, 2, 0, 0]


def test_a_region_that_comes_back_is_used_within_a_minute() -> None:
    dark = [one for site in range(10) for one in nodes("r1", f"s{site}", 8)]
    returns = Returns()
    returns.look(dark, nodes("r2", "s1", 4), 0.0)
    course = [len(returns.look([], dark, 60.0 + at * WINDOW_S)) for at in range(RETURN_SHARE)]

    assert course == [60, 40, 20, 0]


def test_one_node_alone_and_nodes_that_are_new_wait_for_nobody() -> None:
    returns = Returns()
    returns.look(["r1.s1.n0"], [], 0.0)

    assert returns.look([], nodes("r1", "s1", 4), 1.0) == frozenset()


def test_the_fleet_is_not_searched_for_each_node_that_is_remembered() -> None:
    searched: list[object] = []

    class Fleet(list[str]):
        def __contains__(self, node: object) -> bool:
            searched.append(node)
            return super().__contains__(node)

    dark, returns = nodes("r1", "s1", 8), Returns()
    fleet = Fleet(dark + nodes("r2", "s1", 8))
    returns.look(dark, fleet, 0.0)

    assert len(returns.look([], fleet, 60.0)) == 6
    assert searched == []


def test_who_falls_silent_again_while_it_waits_is_counted_once_more() -> None:
    site, returns = nodes("r1", "s1", 4), Returns()
    returns.look(site, [], 0.0)
    first = returns.look([], site, 60.0)
    returns.look(site, [], 200.0)

    assert len(first) == 3
    assert len(returns.look([], site, 300.0)) == 3
