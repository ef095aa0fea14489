"""What is left of a balance is spent: nobody is refused whose request it covers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from busbar_gateway.domain.credit import Ask, Granted, Refused, Reservation
from busbar_gateway.domain.failures import InsufficientQuota, RateLimited
from busbar_gateway.domain.prices import SCALE, PriceList, Rates, Sheet
from busbar_gateway.domain.routes import Caller, Manifest, Route, Target
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.charging import Delivered
from busbar_gateway.usecases.crediting import Credit
from gateway_harness import eventually

TARGETS = (Target("r1", 4),)
CHAT = Route(
    "chat", Manifest("chat", "1", "chat", "tokens", 4, 4096, max_output_tokens=1000), 0, TARGETS
)
FLAT = Route("flat", Manifest("flat", "1", "tensor", "flat"), 0, TARGETS)
FLAT_NANOS = 30
CHEAP = Route("cheap", Manifest("cheap", "1", "tensor", "cheap"), 0, TARGETS)
CHEAP_NANOS = 20
TOKENS = Rates(input_token=100 * SCALE, output_token=400 * SCALE)
CLASSES = {
    "tokens": TOKENS,
    "flat": Rates(request=FLAT_NANOS * SCALE),
    "cheap": Rates(request=CHEAP_NANOS * SCALE),
}
PRICES = PriceList([Sheet(1, "USD", "", 0, 0, CLASSES)])
PAYLOAD = b"x" * 80
INPUT_NANOS = 2_000
"""Of the payload's twenty tokens."""
VAIN_NANOS = 162_000
"""What an answer came to that nobody could pay."""


@dataclass
class Bank:
    """Lends as billing does. What was spent is posted only when its lease is closed."""

    balance: int
    scarce: Refused = Refused.BALANCE
    """What of the tenant's that is."""
    lent: dict[bytes, int] = field(default_factory=dict[bytes, int])
    held_elsewhere: int = 0
    """Of the tenant's, lent to other gateways."""
    closed: int = 0
    refused: int = 0
    refused_below: list[int] = field(default_factory=list[int])
    """What the gateway said of those whom it refused."""

    async def ask(self, asks: Sequence[Ask]) -> list[Granted]:
        self.refused_below += [one.refused_below_nanos for one in asks if one.refused_below_nanos]
        return [self._answer(ask) for ask in asks]

    def _answer(self, ask: Ask) -> Granted:
        if ask.closing:
            self.closed += 1
            self.balance += self.lent.pop(ask.lease_id) - ask.spent_nanos
            return Granted(ask.tenant_id)
        lease_id = ask.lease_id or (self.closed + 1).to_bytes(16, "big")
        wanted = max(ask.need_nanos, ask.want_nanos)
        enough = self.balance >= ask.need_nanos
        more = max(ask.need_nanos, min(wanted, self.balance // 4)) if enough and wanted else 0
        refused = self.scarce if wanted and not more else None
        self.refused += refused is not None
        self.balance -= more
        if more:
            self.lent[lease_id] = self.lent.get(lease_id, 0) + more
        return Granted(
            ask.tenant_id,
            lease_id if lease_id in self.lent else b"",
            self.lent.get(lease_id, 0),
            currency="USD",
            ttl_s=30.0,
            refused=refused,
            elsewhere_nanos=self.balance + self.held_elsewhere,
        )


@asynccontextmanager
async def credit_at(bank: Bank) -> AsyncIterator[Credit]:
    credit = Credit(bank, lambda: PRICES)
    running = asyncio.create_task(credit.run())
    try:
        yield credit
    finally:
        running.cancel()


def call_of(route: Route, output_tokens_max: int = 0, within_s: float = 60) -> InferenceCall:
    deadline = time.monotonic() + within_s
    return InferenceCall(
        b"",
        Caller("t", "key"),
        route,
        PAYLOAD,
        "openai.chat",
        0,
        deadline,
        output_tokens_max=output_tokens_max,
    )


async def claimed(credit: Credit, call: InferenceCall) -> Reservation:
    return credit.claim(call) or await credit.wait(call)


async def worked_in_vain(credit: Credit, call: InferenceCall, nanos: int) -> None:
    """It is let in, comes to more than there is, and ends uncharged."""
    reservation = await claimed(credit, call)
    with pytest.raises(InsufficientQuota, match="does not cover this request"):
        await credit.cover(reservation, call, nanos)
    credit.worked_in_vain(call, nanos)
    credit.release(reservation)


async def test_who_can_pay_for_the_longest_answer_is_served_after_a_dearer_one_in_vain() -> None:
    async with credit_at(Bank(20_000)) as credit:
        await worked_in_vain(credit, call_of(CHAT), VAIN_NANOS)

        short = await claimed(credit, call_of(CHAT, output_tokens_max=16))
        with pytest.raises(InsufficientQuota, match=r"earlier answer .* came to more"):
            await claimed(credit, call_of(CHAT))

    assert short.nanos >= INPUT_NANOS + 16 * 400


async def test_money_for_the_answer_that_was_in_vain_heals_it() -> None:
    bank = Bank(20_000)
    async with credit_at(bank) as credit:
        call = call_of(CHAT)
        await worked_in_vain(credit, call, VAIN_NANOS)
        bank.balance += VAIN_NANOS

        async def served() -> Reservation | None:
            try:
                return await claimed(credit, call)
            except InsufficientQuota:
                return None

        reservation = await eventually(served)
        assert reservation.nanos >= VAIN_NANOS
        credit.spend(reservation, call, Delivered(20, 400, 400, "n", 1, 0), VAIN_NANOS)


async def test_what_came_to_more_than_it_could_is_not_worked_again() -> None:
    bounded = call_of(CHAT, output_tokens_max=16)
    async with credit_at(Bank(20_000)) as credit:
        await worked_in_vain(credit, bounded, VAIN_NANOS)

        with pytest.raises(InsufficientQuota, match="earlier answer"):
            await claimed(credit, bounded)


async def after_three(bank: Bank, credit: Credit, nanos: int) -> asyncio.Task[Reservation]:
    """A request that waits while three have all the money, which then spend `nanos` each: a part
    of the rest is in the lease, a part was never lent."""
    call = call_of(FLAT)
    served = [await claimed(credit, call) for _ in range(3)]
    last = asyncio.create_task(claimed(credit, call))
    await eventually(lambda: bank.refused)
    for reservation in served:
        credit.spend(reservation, call, Delivered(0, 0, 0, "n", 1, 0), nanos)
    return last


async def test_who_waits_is_served_from_what_a_closing_lease_returns() -> None:
    bank = Bank(100)
    async with credit_at(bank) as credit:
        reservation = await (await after_three(bank, credit, 22))

    assert reservation.nanos == FLAT_NANOS
    assert bank.closed == 1


async def test_who_waits_is_refused_when_all_that_comes_back_is_too_little() -> None:
    bank = Bank(100)
    async with credit_at(bank) as credit:
        last = await after_three(bank, credit, 24)

        with pytest.raises(InsufficientQuota, match="does not cover this request"):
            await last

    assert bank.balance == 100 - 3 * 24


@pytest.mark.parametrize(
    ("scarce", "said"),
    [
        (Refused.BUDGET, "what is left of the month's budget does not cover this request"),
        (Refused.BALANCE, "the balance does not cover this request"),
    ],
)
async def test_what_covers_a_smaller_request_is_not_called_spent(
    scarce: Refused, said: str
) -> None:
    async with credit_at(Bank(FLAT_NANOS - 1, scarce)) as credit:
        with pytest.raises(InsufficientQuota, match=said):
            await claimed(credit, call_of(FLAT))
        smaller = await claimed(credit, call_of(CHEAP))

        with pytest.raises(InsufficientQuota, match=said):  # what is in flight is not spent either
            await claimed(credit, call_of(FLAT))

    assert smaller.nanos == CHEAP_NANOS


async def test_a_budget_of_which_nothing_is_left_is_spent() -> None:
    async with credit_at(Bank(FLAT_NANOS, Refused.BUDGET)) as credit:
        call = call_of(FLAT)
        credit.spend(await claimed(credit, call), call, Delivered(0, 0, 0, "n", 1, 0), FLAT_NANOS)

        with pytest.raises(InsufficientQuota, match="the month's budget is spent"):
            await claimed(credit, call)


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (INPUT_NANOS, "an earlier answer of this model"),
        (INPUT_NANOS - 1, "what is left of the month's budget does not cover this request"),
        (0, "the month's budget is spent"),
    ],
)
async def test_an_earlier_answer_is_named_only_where_the_rest_would_do(
    left: int, said: str
) -> None:
    before = 20_000
    async with credit_at(Bank(before, Refused.BUDGET)) as credit:
        await worked_in_vain(credit, call_of(CHAT), VAIN_NANOS)
        other = call_of(FLAT)
        reservation = await claimed(credit, other)
        await credit.cover(reservation, other, before - left)
        credit.spend(reservation, other, Delivered(0, 0, 0, "n", 1, 0), before - left)

        with pytest.raises(InsufficientQuota, match=said):
            await claimed(credit, call_of(CHAT, output_tokens_max=16))


@pytest.mark.parametrize(
    ("scarce", "said"),
    [(Refused.BUDGET, "what is left of the month's budget"), (Refused.BALANCE, "the balance$")],
)
async def test_who_waits_in_vain_is_told_for_what(scarce: Refused, said: str) -> None:
    async with credit_at(Bank(2 * FLAT_NANOS, scarce)) as credit:
        for _ in range(2):
            await claimed(credit, call_of(FLAT))

        with pytest.raises(RateLimited, match=f"requests in flight claim .*{said}"):
            await claimed(credit, call_of(FLAT, within_s=1))


@pytest.mark.parametrize("scarce", [Refused.BUDGET, Refused.BALANCE])
async def test_who_waits_for_what_others_hold_is_told_so(scarce: Refused) -> None:
    bank = Bank(2 * CHEAP_NANOS, scarce, held_elsewhere=FLAT_NANOS)
    async with credit_at(bank) as credit:
        await claimed(credit, call_of(CHEAP))

        with pytest.raises(RateLimited, match=r"lent to other gateways.* try again$"):
            await claimed(credit, call_of(FLAT, within_s=1))


async def test_what_a_begun_answer_comes_to_is_compared_with_all_that_it_can_have() -> None:
    async with credit_at(Bank(5_000)) as credit:
        begun = await claimed(credit, call_of(CHAT))

        with pytest.raises(InsufficientQuota, match=r"may cost 0\.000006 where 0\.000005 is left"):
            await credit.cover(begun, call_of(CHAT), 6_000)


async def test_who_waits_for_a_silent_billing_is_not_told_what_is_scarce() -> None:
    class Silent(Bank):
        async def ask(self, asks: Sequence[Ask]) -> list[Granted]:
            await asyncio.Event().wait()
            return await super().ask(asks)

    async with credit_at(Silent(FLAT_NANOS)) as credit:
        with pytest.raises(RateLimited, match=r"^no credit came free"):
            await claimed(credit, call_of(FLAT, within_s=0.1))


async def heard_of(bank: Bank) -> list[int]:
    """Below which balances requests were refused, once the bank has heard of one."""

    async def heard() -> list[int]:
        return bank.refused_below

    return await eventually(heard)


async def test_billing_hears_of_a_request_that_is_refused_and_not_of_one_that_settles() -> None:
    bank = Bank(INPUT_NANOS)
    async with credit_at(bank) as credit:
        call = call_of(CHAT)
        settled = await claimed(credit, call)
        claimed_nanos = settled.nanos
        credit.spend(settled, call, Delivered(20, 0, 0, "n", 1, 0), INPUT_NANOS)
        costs = r"does not cover this request, which may cost 0\.000002 where 0 is left: add credit"
        with pytest.raises(InsufficientQuota, match=costs):
            await claimed(credit, call)
        heard = await heard_of(bank)

    assert claimed_nanos == INPUT_NANOS
    assert heard == [INPUT_NANOS]


async def test_it_hears_of_what_is_refused_without_asking_it() -> None:
    bank = Bank(20_000)
    async with credit_at(bank) as credit:
        settled = await claimed(credit, call_of(CHAT))
        refused = list[int]()
        for nanos in (VAIN_NANOS, 2 * VAIN_NANOS):
            with pytest.raises(InsufficientQuota):
                await credit.cover(settled, call_of(CHAT), nanos)
            refused.append(bank.refused)
        heard = await heard_of(bank)

    assert refused[0] == refused[1]
    assert heard == [2 * VAIN_NANOS]


async def test_it_hears_of_who_never_had_anything() -> None:
    bank = Bank(0)
    async with credit_at(bank) as credit:
        with pytest.raises(InsufficientQuota):
            await claimed(credit, call_of(CHAT))

        assert await heard_of(bank) == [INPUT_NANOS]
