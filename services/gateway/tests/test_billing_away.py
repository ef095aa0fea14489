"""A gateway that nobody lends to finds out by itself when somebody does again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
from busbar_gateway.domain.credit import (
    IDLE_S,
    SPARE_FACTOR,
    Ask,
    Granted,
    Wallet,
    apply_grant,
    plan_ask,
)
from busbar_gateway.domain.failures import Unavailable
from busbar_gateway.domain.prices import SCALE, PriceList, Rates, Sheet
from busbar_gateway.domain.routes import Caller, Manifest, Route, Target
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.crediting import ASKS_MAX, Credit
from gateway_harness import eventually

REQUEST_NANOS = 50
ROUTE = Route("echo", Manifest("echo", "1", "tensor", "default"), 0, (Target("r1", 1),))
PRICES = PriceList([Sheet(1, "USD", "", 0, 0, {"default": Rates(request=REQUEST_NANOS * SCALE)})])


@dataclass
class Lender:
    """Lends what is asked for, unless it is away."""

    away: bool = True
    most_asks: int = 0
    calls: int = 0

    async def ask(self, asks: Sequence[Ask]) -> list[Granted] | None:
        self.calls += 1
        self.most_asks = max(self.most_asks, len(asks))
        if self.away:
            return None
        return [Granted(one.tenant_id, b"lease", one.want_nanos, ttl_s=30.0) for one in asks]


@pytest.fixture
def lender() -> Lender:
    return Lender()


@pytest.fixture
async def credit(lender: Lender) -> AsyncIterator[Credit]:
    made = Credit(lender, lambda: PRICES)
    asking = asyncio.create_task(made.run())
    yield made
    asking.cancel()


def call_of(tenant_id: str) -> InferenceCall:
    deadline = asyncio.get_running_loop().time() + 10
    caller = Caller(tenant_id, "key")
    return InferenceCall(b"", caller, ROUTE, b"x", "kserve.http.infer", 0, deadline)


async def turned_away(credit: Credit, call: InferenceCall) -> None:
    with pytest.raises(Unavailable, match="cannot be checked"):
        await credit.wait(call)


async def test_who_was_turned_away_without_a_lease_is_served_when_billing_is_back(
    credit: Credit, lender: Lender
) -> None:
    """Nobody else has a lease either, whose renewal would tell that billing is back."""
    call = call_of("acme")
    for _ in range(3):
        await turned_away(credit, call)
    lender.away = False
    claimed = await eventually(lambda: credit.claim(call))

    assert claimed.nanos >= REQUEST_NANOS
    assert not credit.billing_away


async def test_any_number_of_tenants_may_be_turned_away(credit: Credit, lender: Lender) -> None:
    for number in range(ASKS_MAX + 50):
        await turned_away(credit, call_of(f"tenant-{number}"))
    lender.away = False
    await eventually(lambda: not credit.billing_away)
    served = await credit.wait(call_of(f"tenant-{ASKS_MAX + 49}"))

    assert served.nanos >= REQUEST_NANOS
    assert lender.most_asks <= ASKS_MAX


async def test_those_who_wait_hear_after_one_call_that_billing_is_away() -> None:
    """Each call may take as long as they wait at most; the second one would be too late."""
    lender = Lender()
    credit = Credit(lender, lambda: PRICES)
    waiting = [
        asyncio.create_task(credit.wait(call_of(f"tenant-{number}")))
        for number in range(2 * ASKS_MAX)
    ]
    await asyncio.sleep(0)
    await credit.tick()
    ends = await asyncio.gather(*waiting, return_exceptions=True)

    assert {type(end) for end in ends} == {Unavailable}
    assert lender.calls == 1


@pytest.mark.parametrize("answers", [True, False], ids=["there", "away"])
def test_a_lone_tenants_spare_money_goes_back_once_a_renewal_is_answered(*, answers: bool) -> None:
    """Nobody else's answers show that billing is there when its renewal is due."""
    wallet, heard_at = Wallet("t"), 0.0
    granted = Granted("t", b"l" * 16, 10_000_000, ttl_s=30.0)
    first = plan_ask(wallet, [1000], 0.0, heard_at)
    assert first is not None
    apply_grant(wallet, first, granted, 0.0, 0.0)
    returned = dict[int, int]()
    for now in range(4, 46):
        if now % 2:
            claimed = wallet.reserve(10, now, billing_away=not answers)
            assert claimed is not None
            wallet.spend(claimed, 10)
        wallet.measure(now)
        ask = plan_ask(wallet, [], now, heard_at)
        if ask is not None:
            returned[now] = ask.returned_nanos
            if answers:
                heard_at = now
                apply_grant(wallet, ask, granted, now, now)
    lease = wallet.lease
    assert lease is not None

    if answers:
        assert list(returned)[:2] == [10, 11]  # the renewal, and what its answer allows
        assert len(returned) <= 2 * 4
        assert lease.free_nanos <= SPARE_FACTOR * wallet.target_nanos
    else:
        assert len(returned) == 45 - 10 + 1
        assert not any(returned.values())


@pytest.mark.parametrize(
    ("heard_ago_s", "given_back"), [(1.0, True), (30.0, False)], ids=["there", "away"]
)
def test_an_idle_lease_is_given_back_only_to_a_billing_that_is_there(
    heard_ago_s: float, *, given_back: bool
) -> None:
    """What billing did not hear nobody could spend any more, and its tenant would be refused."""
    wallet = Wallet("t")
    first = plan_ask(wallet, [1000], 0.0, 0.0)
    assert first is not None
    apply_grant(wallet, first, Granted("t", b"l" * 16, 100_000, ttl_s=30.0), 0.0, 0.0)
    now = IDLE_S + 1

    ask = plan_ask(wallet, [], now, now - heard_ago_s)

    assert ask is not None  # a renewal is due in any case
    assert ask.closing is given_back
    served = wallet.reserve(1000, now, billing_away=True)
    assert (served is None) is given_back
