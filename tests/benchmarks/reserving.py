"""CPU that the whole money and admission step takes of one request, on the production path.

With 10,000 tenants known and 500 of them active: limits, the claim on the tenant's
lease and the turn in fair order; where 500 wait, also waking the next one when a slot
becomes free. Apart from it stands what the request costs at its end: the price of what
was used, the claim's settlement, the slot and the limits. Renewing the leases of all
active tenants, four times a second at 1,000 requests a second, is in it; billing's own
work is not.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop
from busbar_gateway.domain.admission import Ticket
from busbar_gateway.domain.credit import Ask, Granted, Reservation
from busbar_gateway.domain.limits import Grant
from busbar_gateway.domain.policies import Band, Policy
from busbar_gateway.domain.prices import SCALE, PriceList, Rates, Sheet
from busbar_gateway.domain.routes import Caller, Manifest, Route, Target
from busbar_gateway.usecases.admitting import Admissions
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.charging import Delivered
from busbar_gateway.usecases.crediting import MEASURE_EVERY_S, Credit
from busbar_gateway.usecases.limiting import Limiting

TENANTS, ACTIVE = 10_000, 500
ROUNDS, SLICES, SLICE_REQUESTS = 3, 100, 250
"""The machine is shared: what counts is the tenth of the slices that was disturbed least."""
COLLECTOR = (10_000, 20, 20)
"""The garbage collector's thresholds, as `busbar_gateway.main` sets them."""
SLOTS = 32
LIMIT_US = 25.0
_REQUESTS_PER_TICK = 250
_NEVER = 1e12
_POLICY = Policy(Band.STANDARD, 1, 10**9, 10**12, 10**6)
_ROUTE = Route(
    "chat",
    Manifest("chat", "1", "chat", "tokens", SLOTS, 4096, 1024),
    0,
    (Target("r1", SLOTS),),
)
_DELIVERED = Delivered(120, 80, 400, "r1.s1.n1", 1, 0)


class Generous:
    """Lends whatever is asked for."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._lent: dict[bytes, int] = {}

    async def ask(self, asks: Sequence[Ask]) -> list[Granted]:
        return [self._grant(ask) for ask in asks]

    def _grant(self, ask: Ask) -> Granted:
        lease_id = ask.lease_id or next(self._ids).to_bytes(16, "big")
        lent = self._lent[lease_id] = self._lent.get(lease_id, 0) + ask.want_nanos
        return Granted(ask.tenant_id, lease_id, lent, ask.spent_nanos, "USD", 30.0)


@dataclass(slots=True)
class Admitted:
    """A request that has its turn."""

    call: InferenceCall
    grant: Grant
    money: Reservation
    ticket: Ticket


class Gateway:
    """The use cases that a request passes, as main.py puts them together."""

    def __init__(self) -> None:
        rates = Rates(input_token=100 * SCALE // 1000, output_token=400 * SCALE // 1000)
        sheet = Sheet(1, "USD", "", 0, 0, {"tokens": rates, "default": rates})
        prices = PriceList([sheet])
        self.limiting = Limiting(lambda _: _POLICY)
        self.credit = Credit(Generous(), lambda: prices)
        self.admissions = Admissions(
            queue_max=2 * ACTIVE,
            unready_grace_s=1,
            remembered_ready_s=1,
            current_route=lambda _: _ROUTE,
            region="r1",
            others=lambda _: [],
            policy=lambda _: _POLICY,
        )

    async def admit(self, call: InferenceCall) -> Admitted:
        """Limits, money and a turn, as `usecases.served` takes them."""
        grant = self.limiting.enter(call)
        money = self.credit.claim(call) or await self.credit.wait(call)
        ticket = self.admissions.enter(call)
        if ticket.turn is not None:
            await ticket.turn
        assert grant is not None
        return Admitted(call, grant, money, ticket)

    def settle(self, one: Admitted) -> None:
        """The price, what was claimed, the slot and the limits, when the answer is there."""
        credit, call, money = self.credit, one.call, one.money
        self.admissions.leave(_ROUTE.deployment, one.ticket, 280.0)
        cost = credit.cost_nanos(call, _DELIVERED, 1)
        assert credit.covers(money, cost)
        credit.spend(money, call, _DELIVERED, cost)
        credit.release(money)
        self.limiting.leave(one.grant, 120, 80)


def _call(number: int) -> InferenceCall:
    caller = Caller(f"tenant-{number}", "key")
    payload = b"x" * 480
    return InferenceCall(
        b"", caller, _ROUTE, payload, "openai.chat", 0, _NEVER, output_tokens_max=128
    )


Serve = Callable[[InferenceCall], Awaitable[None]]


async def _warm() -> tuple[Gateway, list[InferenceCall]]:
    """A gateway with leases of all tenants, and calls of those that are active."""
    gateway = Gateway()
    calls = [_call(number) for number in range(TENANTS)]
    renewing = asyncio.create_task(gateway.credit.run())
    for call in [*calls, *calls[:ACTIVE]]:
        gateway.settle(await gateway.admit(call))
    renewing.cancel()
    await gateway.credit.tick()
    gc.collect()
    gc.freeze()
    return gateway, calls[:ACTIVE]


async def _whole_us(*, backlogged: bool) -> float:
    """One request with its settlement and what its client costs."""
    gateway, calls = await _warm()
    served = itertools.count(1)

    async def serve(call: InferenceCall) -> None:
        one = await gateway.admit(call)
        if backlogged:  # others want the slot that it holds
            await asyncio.sleep(0)
        gateway.settle(one)
        if next(served) % _REQUESTS_PER_TICK == 0:
            await gateway.credit.tick()

    clients = ACTIVE if backlogged else 1
    return await _driven_us(serve, calls, clients)


async def _bare_us(*, backlogged: bool) -> float:
    """What the clients of a request cost."""

    async def nothing(call: InferenceCall) -> None:
        del call
        if backlogged:
            await asyncio.sleep(0)

    calls = [_call(number) for number in range(ACTIVE)]
    return await _driven_us(nothing, calls, ACTIVE if backlogged else 1)


async def _semaphore_us() -> float:
    """What asyncio's own queue costs: no limits, no money, no fair order."""
    slots = asyncio.Semaphore(SLOTS)

    async def serve(call: InferenceCall) -> None:
        del call
        async with slots:
            await asyncio.sleep(0)

    calls = [_call(number) for number in range(ACTIVE)]
    return await _driven_us(serve, calls, ACTIVE)


async def _settle_us() -> float:
    """A settlement when nobody waits for the slot; handing it on belongs to the admission."""
    gateway, calls = await _warm()
    draws, took_us = random.Random(1), list[float]()
    for _ in range(SLICES):
        admitted = [await gateway.admit(draws.choice(calls)) for _ in range(SLOTS // 2)]
        began = time.perf_counter_ns()
        for one in admitted:
            gateway.settle(one)
        took_us.append((time.perf_counter_ns() - began) / 1000 / len(admitted))
    return _undisturbed(took_us)


async def _look_us() -> float:
    """The look at every lease, once a second; for each of them."""
    gateway, _ = await _warm()
    await asyncio.sleep(MEASURE_EVERY_S)
    began = time.process_time_ns()
    await gateway.credit.tick()
    return (time.process_time_ns() - began) / 1000 / TENANTS


async def _driven_us(serve: Serve, calls: list[InferenceCall], clients: int) -> float:
    """CPU microseconds for one of the requests that so many clients send one after the other."""
    draws, marks_ns = random.Random(1), list[int]()

    async def client() -> None:
        while len(marks_ns) <= SLICES:
            await serve(draws.choice(calls))
            if next(served) % SLICE_REQUESTS == 0:
                marks_ns.append(time.process_time_ns())

    served = itertools.count(1)
    await asyncio.gather(*(client() for _ in range(clients)))
    slices = [(b - a) / 1000 / SLICE_REQUESTS for a, b in itertools.pairwise(marks_ns[:SLICES])]
    return _undisturbed(slices)


def _undisturbed(slices: list[float]) -> float:
    """The tenth that was disturbed least by what else the machine does."""
    return statistics.quantiles(slices, n=10)[0]


def report() -> list[dict[str, Any]]:
    """What `./just bench` prints of this."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*COLLECTOR)
    try:
        return _lines()
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _quietest(step: Callable[[], Coroutine[Any, Any, float]]) -> float:
    """The round that was disturbed least; of each thing its own, so that none hides another."""
    return min(uvloop.run(step()) for _ in range(ROUNDS))


def _lines() -> list[dict[str, Any]]:
    settle = _quietest(_settle_us)
    bare, bare_waiting = (_quietest(partial(_bare_us, backlogged=one)) for one in (False, True))
    free = _quietest(partial(_whole_us, backlogged=False)) - bare - settle
    waiting = _quietest(partial(_whole_us, backlogged=True)) - bare_waiting - settle
    semaphore = _quietest(_semaphore_us) - bare_waiting
    step, wait = "limits, credit and admission", f"{ACTIVE} wait"
    return [
        {"step": f"{step}, slots free", "cpu_us": free, "limit_us": LIMIT_US},
        {"step": f"{step}, {wait}", "cpu_us": waiting, "limit_us": LIMIT_US},
        {"step": "settling the request at its end", "cpu_us": settle},
        {"step": f"peer: asyncio.Semaphore alone, {wait}", "cpu_us": semaphore},
        {"step": "each second, for each lease held", "cpu_us": _quietest(_look_us)},
    ]


if __name__ == "__main__":
    for line in report():
        limit = f", limit {line['limit_us']:.0f}" if "limit_us" in line else ""
        print(f"{line['step']}: {line['cpu_us']:.1f} us CPU{limit}")  # noqa: T201
