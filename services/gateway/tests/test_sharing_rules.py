"""Slots of all regions are shared out among the gateways of all regions, and none twice."""

from __future__ import annotations

import pytest
from busbar_gateway.domain.sharing import Peer, allot
from hypothesis import given
from hypothesis import strategies as st

REGIONS = ["r1", "r2", "r3"]
FLEETS = st.dictionaries(st.sampled_from(REGIONS), st.integers(1, 40), max_size=3)
GATEWAYS = st.lists(
    st.builds(Peer, st.sampled_from(REGIONS), st.integers(0, 100)), min_size=1, max_size=6
)


def parts_of_all(slots: dict[str, int], gateways: list[Peer]) -> list[dict[str, float]]:
    """What each gateway finds to be its own."""
    return [
        allot(slots, own, [*gateways[:at], *gateways[at + 1 :]]) for at, own in enumerate(gateways)
    ]


def total(parts: dict[str, float]) -> float:
    return sum(parts.values())


@given(FLEETS, GATEWAYS)
def test_all_together_have_no_more_out_than_there_are_slots(
    slots: dict[str, int], gateways: list[Peer]
) -> None:
    parts = parts_of_all(slots, gateways)
    for region, ready in slots.items():
        out = 0.0
        for gateway, its in zip(gateways, parts, strict=True):
            at_home = gateway.region == region
            out += min(gateway.demand, its[region]) if at_home else its[region]
        assert out <= ready + 1e-6
    in_flight = sum(min(one.demand, total(its)) for one, its in zip(gateways, parts, strict=True))
    assert in_flight <= sum(slots.values()) + 1e-6


@given(FLEETS, GATEWAYS)
def test_no_part_is_less_than_nothing_or_where_the_deployment_is_not(
    slots: dict[str, int], gateways: list[Peer]
) -> None:
    for parts in parts_of_all(slots, gateways):
        assert parts.keys() == slots.keys()
        assert all(part >= 0 for part in parts.values())


@given(FLEETS, GATEWAYS)
def test_a_region_s_own_gateways_are_never_held_back_from_its_slots(
    slots: dict[str, int], gateways: list[Peer]
) -> None:
    parts = parts_of_all(slots, gateways)
    for region, ready in slots.items():
        at_home = [
            its[region] for one, its in zip(gateways, parts, strict=True) if one.region == region
        ]
        assert sum(at_home) == pytest.approx(ready if at_home else 0.0)


def test_the_only_gateway_has_every_slot() -> None:
    assert allot({"r1": 4, "r2": 8}, Peer("r1", 0), []) == {"r1": 4, "r2": 8}


def test_what_a_region_does_not_ask_for_is_lent() -> None:
    slots = {"r1": 8, "r2": 8}

    assert allot(slots, Peer("r1", 20), [Peer("r2", 3)]) == {"r1": 8.0, "r2": 5.0}
    assert allot(slots, Peer("r1", 20), [Peer("r2", 30)]) == {"r1": 8.0, "r2": 0.0}


def test_who_lacks_slots_at_home_is_lent_most() -> None:
    slots = {"r1": 4, "r2": 4, "r3": 12}
    short, easy = Peer("r1", 13), Peer("r2", 1)

    assert allot(slots, short, [easy])["r3"] == pytest.approx(12 * 10 / 11)
    assert allot(slots, easy, [short])["r3"] == pytest.approx(12 * 1 / 11)


def test_gateways_of_one_region_have_equal_parts() -> None:
    peers = [Peer("r1", 9), Peer("r1", 0)]

    assert [one["r1"] for one in parts_of_all({"r1": 8}, peers)] == [4.0, 4.0]
