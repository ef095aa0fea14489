"""CPU that the whole money and admission step takes of one request, on the production path.

With 10,000 tenants known and 500 of them active: limits, the claim on the tenant's
lease, the turn in fair order, and at the end the price of what was used, the claim's
settlement, the slot and the limits. Renewing the leases of all active tenants, four
times a second at 1,000 requests a second, is in it; billing's own work is not.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop
from busbar_gateway.domain.credit import Ask, Granted
from busbar_gateway.domain.policies import Band, Policy
from busbar_gateway.domain.prices import SCALE, PriceList, Rates, Sheet
from busbar_gateway.domain.routes import Caller, Manifest, Route, Target
from busbar_gateway.usecases.admitting import Admissions
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.charging import Delivered
from busbar_gateway.usecases.crediting import Credit
from busbar_gateway.usecases.limiting import Limiting

TENANTS, ACTIVE = 10_000, 500
ROUNDS, REQUESTS = 5, 5_000
"""The best round counts: the others were disturbed."""
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
            gateways=lambda: 1,
            policy=lambda _: _POLICY,
        )

    async def serve(self, call: InferenceCall, *, hold: bool) -> None:
        """One request; while it `hold`s its slot, others want it."""
        credit = self.credit
        grant = self.limiting.enter(call)
        money = credit.claim(call) or await credit.wait(call)
        ticket = await self.admissions.enter(call)
        if hold:
            await asyncio.sleep(0)
        cost = credit.cost_nanos(call, _DELIVERED, 1)
        assert credit.covers(money, cost)
        self.admissions.leave(_ROUTE.deployment, ticket, 280.0)
        credit.spend(money, call, cost)
        credit.release(money)
        assert grant is not None
        self.limiting.leave(call.caller.tenant_id, grant, 120, 80)


def _call(number: int) -> InferenceCall:
    caller = Caller(f"tenant-{number}", "key")
    payload = b"x" * 480
    return InferenceCall(
        b"", caller, _ROUTE, payload, "openai.chat", 0, _NEVER, output_tokens_max=128
    )


Serve = Callable[[InferenceCall], Awaitable[None]]


async def _run(*, backlogged: bool) -> float:
    gateway, draws = Gateway(), random.Random(1)
    calls = [_call(number) for number in range(TENANTS)]
    served = itertools.count(1)

    async def serve(call: InferenceCall) -> None:
        await gateway.serve(call, hold=backlogged)
        if next(served) % _REQUESTS_PER_TICK == 0:
            await gateway.credit.tick()

    async def nothing(call: InferenceCall) -> None:
        del call
        if backlogged:
            await asyncio.sleep(0)

    renewing = asyncio.create_task(gateway.credit.run())
    for call in [*calls, *calls[:ACTIVE]]:
        await gateway.serve(call, hold=False)
    renewing.cancel()
    await gateway.credit.tick()
    clients = ACTIVE if backlogged else 1
    rounds: list[float] = []
    for _ in range(ROUNDS):
        arrivals = [draws.choice(calls[:ACTIVE]) for _ in range(REQUESTS)]
        of_the_clients = await _round(nothing, arrivals, clients)
        rounds.append(await _round(serve, arrivals, clients) - of_the_clients)
    return min(rounds)


async def _round(serve: Serve, arrivals: list[InferenceCall], clients: int) -> float:
    waiting = iter(arrivals)

    async def client() -> None:
        for call in waiting:
            await serve(call)

    began = time.process_time_ns()
    await asyncio.gather(*(client() for _ in range(clients)))
    return (time.process_time_ns() - began) / 1000 / len(arrivals)


def report() -> list[dict[str, Any]]:
    """What `./just bench` prints of this."""
    step = "limits, credit and admission"
    free, waiting = uvloop.run(_run(backlogged=False)), uvloop.run(_run(backlogged=True))
    return [
        {"step": f"{step}, slots free", "cpu_us": free, "limit_us": LIMIT_US},
        {"step": f"{step}, {ACTIVE} wait", "cpu_us": waiting, "limit_us": LIMIT_US},
    ]


if __name__ == "__main__":
    for line in report():
        found, limit = line["cpu_us"], line["limit_us"]
        print(f"{line['step']}: {found:.1f} us CPU a request, limit {limit:.0f}")  # noqa: T201
