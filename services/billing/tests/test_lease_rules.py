"""How much of a balance an ask is granted, and for whom other gateways are asked to give back."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from busbar_billing.domain.leases import (
    SLICE_DIVISOR,
    Ask,
    Grant,
    Lease,
    Refusal,
    Standing,
    answer_ask,
)
from busbar_billing.usecases.leases import Answered, to_be_recalled
from hypothesis import given
from hypothesis import strategies as st

LEASE = Lease(UUID(int=1), "tenant", "USD", "g1", "run-1")


def granted(balance_nanos: int, lease: Lease, *, want: int, need: int = 0) -> Grant:
    """What an ask for more comes to."""
    ask = Ask("tenant", lease.lease_id, want, need)
    return answer_ask(ask, lease, Standing("USD", balance_nanos), lease, now_unix_ms=0)


@given(balance_nanos=st.integers(0, 10**12), want=st.integers(1, 10**12))
def test_a_scarce_balance_is_lent_in_few_pieces(balance_nanos: int, want: int) -> None:
    lease, left, holds = LEASE, balance_nanos, 0
    for _ in range(100):
        grant = granted(left, lease, want=want)
        if grant.held_nanos == want:
            return
        assert grant.lease is not None
        lease, left, holds = grant.lease, left - grant.held_nanos, holds + bool(grant.held_nanos)

    assert holds <= SLICE_DIVISOR
    assert lease.granted_nanos - LEASE.granted_nanos == balance_nanos - left
    assert granted(left, lease, want=left, need=left).held_nanos == left


def test_who_waits_gets_the_last_nano_all_the_same() -> None:
    lease = replace(LEASE, granted_nanos=7_300)

    assert granted(7_200, lease, want=10**6).held_nanos == 0
    assert granted(7_200, lease, want=10**6, need=2_700).held_nanos == 2_700
    assert granted(6, lease, want=10**6, need=6).held_nanos == 6


def test_a_wish_that_is_granted_in_full_may_be_small() -> None:
    lease = replace(LEASE, granted_nanos=10**6)

    assert granted(10**6, lease, want=5).held_nanos == 5


def test_what_was_spent_is_lent_again_from_a_scarce_balance() -> None:
    full = replace(LEASE, granted_nanos=10**6)
    spent = replace(full, posted_nanos=500_000)
    full_gets, spent_gets = (granted(700_000, one, want=10**9) for one in (full, spent))

    assert (full_gets.held_nanos, spent_gets.held_nanos) == (0, 700_000 // SLICE_DIVISOR)
    assert full_gets.refusal is spent_gets.refusal is None


@pytest.mark.parametrize(("need", "recalled"), [(0, []), (5, ["tenant"])])
def test_others_give_back_for_somebody_who_waits_only(need: int, recalled: list[str]) -> None:
    ask = Ask("tenant", LEASE.lease_id, want_nanos=10**6, need_nanos=need)
    refused = Answered(Grant("tenant", LEASE, refusal=Refusal.BALANCE), 3, 10**6)

    assert to_be_recalled([ask], [refused]) == recalled
