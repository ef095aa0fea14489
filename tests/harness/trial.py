"""Steady mixed load from before a fault until after it, and what the fault cost."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from busbar_runtime.platform import Platform

from harness.audit import assert_audit_clean
from harness.cost_records import answered_at, gaps, measured, unmeasured
from harness.figures import Figures
from harness.operator import Customer, Operator
from harness.polling import eventually
from harness.steady_load import DEADLINE_S, Clients, LoadLog, steady_load
from harness.work_sent import last_sent

SERVED_S = 40.0
RECORDS_S = 90.0
CHAT_TOKENS = 80
LOAD: dict[str, Any] = {"grpc_clients": 3, "http_clients": 1, "chats": 3, "pause_s": 0.2}
"""Steady, and no more than two busy cores have room for."""


@dataclass
class Trial:
    """One load on a platform; the fault is up to the test."""

    platform: Platform
    operator: Operator
    customer: Customer
    clients: Clients
    log: LoadLog
    fault_at: float = 0.0
    fault_unix_s: float = 0.0

    def begin(self) -> None:
        """The fault comes now."""
        self.fault_at, self.fault_unix_s = time.monotonic(), time.time()

    async def passes(self, seconds: float) -> None:
        """Wait while the load goes on."""
        began = time.monotonic()

        async def long_enough() -> bool:
            return time.monotonic() - began >= seconds

        await eventually(long_enough, within_s=seconds + 5, what="the time")

    async def goes_on(self, count: int = 100) -> None:
        """Wait until so many requests that are sent from now on are answered."""
        since = time.monotonic()

        async def answered() -> int:
            return self.log.answered_since(since)

        await eventually(
            answered, within_s=SERVED_S, what=f"{count} answers", until=lambda n: n >= count
        )

    async def serves(self, node: str, within_s: float = SERVED_S) -> float:
        """Seconds until the node has answered again."""
        since = time.time()

        async def look() -> list[float]:
            return await answered_at(self.platform, node, since=since)

        return (await eventually(look, within_s=within_s, what=f"{node} answers"))[0] - since

    async def sent_until_s(self, region: str) -> float:
        """Seconds from the fault to the last work that was sent to a region, by its stream."""
        return await last_sent(self.platform, region) - self.fault_unix_s

    def quiet_until_s(self) -> float:
        """Seconds from the fault to the end of the longest time without an answer after it."""
        times = [self.fault_at, *sorted(r.at for r in self.log.answered if r.at >= self.fault_at)]
        _, end = max(itertools.pairwise(times), key=lambda pair: pair[1] - pair[0])
        return end - self.fault_at

    async def judged(self, fault: str, full_service_s: float) -> Figures:
        """What it cost, once what was on its way has arrived; the books are audited."""
        print(f"\n{fault}: {self.log.summary()}")  # noqa: T201
        answered = {request.request_id for request in self.log.answered if request.request_id}

        async def lost() -> int:
            return len(unmeasured(await measured(self.platform), answered))

        left = await lost()
        until = time.monotonic() + RECORDS_S
        while left and time.monotonic() < until:
            await self.passes(0.5)
            left = await lost()
        missing = sum(len(some) for some in gaps(await measured(self.platform)).values())
        await assert_audit_clean(self.platform)
        charges = Counter(
            one["request_id"]
            for one in await self.operator.usage(self.customer.tenant_id)
            if not one["voided"]
        )
        assert answered <= set(charges), "answered and not charged"
        return Figures(
            fault,
            len(self.log.answered),
            len(self.log.failed),
            self.clients.longest_stream_gap_s(self.fault_at),
            full_service_s,
            left + missing,
            sum(count > 1 for count in charges.values()),
        )


@asynccontextmanager
async def trial(platform: Platform, *, deadline_s: float = DEADLINE_S) -> AsyncIterator[Trial]:
    """Tensors, embeddings and chats, from before the block until after it."""
    operator = Operator(platform.endpoints)
    customer = await operator.customer()
    clients = Clients(
        platform.endpoints["grpc"],
        platform.endpoints["http"],
        customer.key,
        deadline_s=deadline_s,
    )
    clients.chat_tokens = CHAT_TOKENS
    async with steady_load(clients, **LOAD) as log:
        made = Trial(platform, operator, customer, clients, log)
        await made.goes_on()
        yield made
        await made.goes_on()
    await clients.close()
