"""How many answers a tenant may keep beside others."""

from __future__ import annotations

from busbar_gateway.domain.answer_shares import ENTRY_BYTES, KeptAnswers
from hypothesis import given
from hypothesis import strategies as st

ROOM, DAY_S = 1_000 * ENTRY_BYTES, 86_400.0
COST_MAX = 8 * ENTRY_BYTES


@given(
    wishes=st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, COST_MAX - ENTRY_BYTES)), max_size=2_000
    )
)
def test_whatever_others_keep_a_newcomer_finds_room(wishes: list[tuple[int, int]]) -> None:
    kept, tenants = KeptAnswers(ROOM, DAY_S), {tenant for tenant, _ in wishes}
    for tenant, size in wishes * 20:
        if kept.left_bytes(f"t{tenant}", 0) > 0:
            kept.add(f"t{tenant}", size, 0)

    # The last one of them took no more than it left, with an answer; so did the one before it.
    assert kept.left_bytes("newcomer", 0) >= ROOM / 2 ** len(tenants) - 2 * COST_MAX


@given(tenants=st.integers(1, 12), size=st.integers(0, COST_MAX - ENTRY_BYTES))
def test_those_who_fill_it_together_leave_each_other_equal_shares(tenants: int, size: int) -> None:
    kept, names = KeptAnswers(ROOM, DAY_S), [f"t{at}" for at in range(tenants)]
    while waiting := [name for name in names if kept.left_bytes(name, 0) > 0]:
        for name in waiting:
            kept.add(name, size, 0)

    assert kept.left_bytes("newcomer", 0) >= ROOM / (tenants + 1) - COST_MAX * tenants


def test_alone_a_tenant_has_half() -> None:
    kept, count = KeptAnswers(ROOM, DAY_S), 0
    while kept.left_bytes("t1", 0) > 0:
        kept.add("t1", 0, 0)
        count += 1

    assert count == 500


def test_what_was_kept_counts_until_it_ends_and_at_most_an_hour_longer() -> None:
    kept = KeptAnswers(ROOM, DAY_S)
    kept.add("t1", 5_000, 7_200)
    kept.add("t1", 5_000, 10_800)
    one = 5_000 + ENTRY_BYTES

    assert kept.left_bytes("t1", 7_200 + DAY_S) == ROOM - 4 * one
    assert kept.wait_s("t1", 7_200 + DAY_S) == 3_600
    assert kept.left_bytes("t1", 10_800 + DAY_S) == ROOM - 2 * one
    assert kept.left_bytes("t2", 10_800 + DAY_S) == ROOM - one
    assert kept.left_bytes("t1", 14_400 + DAY_S) == ROOM
    assert kept.wait_s("t1", 14_400 + DAY_S) == 0
