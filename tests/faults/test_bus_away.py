"""NATS gone for a while under load: clear errors meanwhile, everything right afterwards.

8 s here; `./just long-faults` makes it half a minute.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from busbar_runtime.platform import Platform
from harness.audit import assert_audit_clean
from harness.operator import Operator
from harness.polling import eventually
from harness.steady_load import Clients, LoadLog, steady_load

SERVED_AGAIN_S = 20.0


@pytest.mark.parametrize(
    "away_s", [8, pytest.param(30, marks=pytest.mark.long_fault)], ids=["8s", "30s"]
)
async def test_a_bus_that_is_away_costs_clear_errors_and_no_money(
    platform: Platform, operator: Operator, away_s: float
) -> None:
    customer = await operator.customer()
    clients = Clients(platform.endpoints["grpc"], platform.endpoints["http"], customer.key)
    began = time.monotonic()
    async with steady_load(clients) as log:
        await served(log, 50, 30, since=began)
        await platform.stop("nats")
        gone_at = time.monotonic()

        async def long_enough() -> bool:
            return time.monotonic() - gone_at >= away_s

        await eventually(long_enough, within_s=away_s + 5, what="the bus was away long enough")
        while_away = log.answered_since(gone_at)
        await asyncio.wait_for(platform.start("nats"), SERVED_AGAIN_S)
        back_at = time.monotonic()
        await served(log, 50, SERVED_AGAIN_S, since=back_at)
    await clients.close()
    print(f"\nbus away for {away_s:.0f} s: {log.summary()}")  # noqa: T201

    log.assert_clear_and_in_time()
    assert while_away == 0, "answered without a durable charge"
    assert log.longest_gap_s(gone_at) > away_s / 2, "the load never met the outage"
    await assert_audit_clean(platform)
    answered = sorted(request.request_id for request in log.answered)

    async def charged() -> list[str]:
        usage = await operator.usage(customer.tenant_id)
        return sorted(one["request_id"] for one in usage if not one["voided"])

    # What was durable when its client had given up is taken back by its gateway, a little later.
    await eventually(
        charged, within_s=30, what="the answered are charged", until=lambda one: one == answered
    )


async def served(log: LoadLog, count: int, within_s: float, *, since: float) -> None:
    """Wait until so many requests that were sent after `since` are answered."""

    async def answered() -> int:
        return log.answered_since(since)

    await eventually(
        answered, within_s=within_s, what=f"{count} answers", until=lambda n: n >= count
    )
