"""Billing while its database or its bus goes away: nothing lost, nothing twice, back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from audits import assert_audit_clean
from billing_parts import Gateway, Service, running
from busbar_messaging import topology
from busbar_runtime.platform import Platform
from busbar_runtime.ports import PortPool
from harness.polling import eventually
from ledger_checks import assert_ledger_holds
from nats.aio.client import Client
from neighbours import Neighbours, neighbours

BACK_S = 10
CAUGHT_UP_S = 25
COST_NANOS = 100_000
LOAD_PAUSE_S = 0.005
LAG_MESSAGES_AT_LEAST = 50


@dataclass(frozen=True)
class Parts:
    """A billing of its own, whose neighbours may be hurt."""

    platform: Platform
    billing: Service
    gateway: Gateway
    bus: Client
    around: Neighbours


@pytest.fixture(scope="module")
async def parts(tmp_path_factory: pytest.TempPathFactory, ports: PortPool) -> AsyncIterator[Parts]:
    async with (
        neighbours(tmp_path_factory.mktemp("outages")) as around,
        running(around.environment, ports) as billing,
    ):
        yield Parts(around.platform, billing, around.gateway, around.bus, around)


@contextlib.asynccontextmanager
async def load(parts: Parts, tenant: str) -> AsyncIterator[list[str]]:
    """Records of the tenant, one after the other, while the block runs; their request ids."""
    published: list[str] = []
    stopping = asyncio.Event()

    async def publish() -> None:
        while not stopping.is_set():
            record = parts.gateway.record(tenant)
            await parts.gateway.publish(record)
            published.append(f"req_{record.request_id.hex()}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), LOAD_PAUSE_S)

    task = asyncio.create_task(publish())
    try:
        yield published
    finally:
        stopping.set()
        await task


async def posted(parts: Parts, tenant: str) -> int:
    """How many of its records are."""
    database = await parts.around.database()
    query = "SELECT count(*) FROM usage_records WHERE tenant_id = $1"
    count: int = await database.fetchval(query, tenant)
    await database.close()
    return count


async def charged(parts: Parts, tenant: str, published: list[str]) -> list[str]:
    """The charged records, sorted, once all are that were published; nothing was given up and the
    ledger holds."""
    database = await parts.around.database()
    query = "SELECT count(*) FROM usage_records WHERE tenant_id = $1"

    async def posted() -> int:
        return await database.fetchval(query, tenant)

    await eventually(
        posted,
        within_s=CAUGHT_UP_S,
        what=f"{len(published)} charges",
        until=lambda count: count >= len(published),
    )
    rows = await database.fetch("SELECT request_id FROM usage_records WHERE tenant_id = $1", tenant)
    await assert_ledger_holds(database)
    await assert_audit_clean(parts.billing)
    await database.close()
    letters = (await parts.bus.jetstream(timeout=5).stream_info(topology.DLQ.name)).state.messages
    assert letters == 0
    return sorted(f"req_{row[0].hex}" for row in rows)


async def redeliveries(bus: Client) -> int:
    """Messages that are waiting for another delivery."""
    spec = topology.BILLING_USAGE
    info = await bus.jetstream(timeout=5).consumer_info(spec.stream, spec.durable)
    return info.num_redelivered or 0


async def test_a_database_restarted_under_load_costs_nothing(parts: Parts) -> None:
    tenant = await parts.billing.tenant()
    async with load(parts, tenant) as published:
        for fault in (signal.SIGKILL, signal.SIGINT):  # a crash; an operator's fast restart
            await more(parts, published, 50)
            await parts.platform.kill("postgres", fault)
            await more(parts, published, 20)
            await parts.platform.wait_ready("postgres")
        await more(parts, published, 20)

    assert await charged(parts, tenant, published) == sorted(published)


async def more(parts: Parts, published: list[str], count: int) -> None:
    """Wait until so many more were published."""
    wanted = len(published) + count

    async def there() -> bool:
        return len(published) >= wanted

    await eventually(there, within_s=BACK_S, what=f"{count} more records")


async def test_what_waits_is_told_while_the_database_is_away(parts: Parts) -> None:
    tenant = await parts.billing.tenant()

    async def lag(unit: str) -> float:
        return await parts.billing.metric(f'busbar_billing_lag_{unit}{{consumer="billing-usage"}}')

    async with load(parts, tenant) as published:
        await more(parts, published, 20)
        await parts.platform.stop("postgres")
        try:
            await more(parts, published, 100)
            await eventually(
                lambda: lag("messages"),
                within_s=CAUGHT_UP_S,
                what="messages wait",
                until=lambda count: count > LAG_MESSAGES_AT_LEAST,
            )
            first_s = await lag("seconds")
            await eventually(
                lambda: lag("seconds"),
                within_s=BACK_S,
                what="the oldest grows older",
                until=lambda age_s: age_s > first_s + 1,
            )
        finally:
            await parts.platform.start("postgres")

    assert await charged(parts, tenant, published) == sorted(published)
    await eventually(
        lambda: lag("messages"),
        within_s=BACK_S,
        what="nothing waits",
        until=lambda count: count == 0,
    )


async def test_a_full_disk_delays_charges_and_loses_none(parts: Parts) -> None:
    disk = parts.around.disk
    if disk is None:
        pytest.skip("a disk of a chosen size is a tmpfs, and only root may mount one")
    tenant = await parts.billing.tenant()
    before = await parts.billing.metric("busbar_billing_retries_total")

    async def refused() -> float:
        return await parts.billing.metric("busbar_billing_retries_total") - before

    async with load(parts, tenant) as published:
        await more(parts, published, 50)
        disk.fill()
        try:
            first = await eventually(refused, within_s=BACK_S, what="a failed posting")
            fitted = -await posted(parts, tenant)
            await more(parts, published, 100)
            later = await eventually(
                refused, within_s=2 * BACK_S, what="more of them", until=lambda n: n > first
            )
            fitted += await posted(parts, tenant)  # what is left of a page takes some
            said = parts.platform.log("postgres")
        finally:
            disk.free()

    assert "No space left on device" in said
    assert later - first < 10 + fitted, "all that waited was tried again, not one for all"
    assert await charged(parts, tenant, published) == sorted(published)


async def test_without_a_database_it_says_so_and_pulls_nothing(parts: Parts) -> None:
    tenant = await parts.billing.tenant()
    await parts.platform.stop("postgres")

    async def unready() -> bool:
        return not await parts.billing.is_ready()

    await eventually(unready, within_s=BACK_S, what="billing is not ready")
    answer = await parts.billing.call("GET", "/tenants")
    await parts.gateway.publish(parts.gateway.record(tenant))
    await parts.platform.start("postgres")
    started = time.monotonic()

    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    await eventually(parts.billing.is_ready, within_s=BACK_S, what="billing is ready")
    await parts.billing.posted(tenant, 1)
    assert time.monotonic() - started < BACK_S
    assert await redeliveries(parts.bus) <= 1


async def test_a_bus_that_is_restarted_is_used_again_and_revocations_catch_up(
    parts: Parts,
) -> None:
    tenant = await parts.billing.tenant()
    key = await parts.billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "n"})
    await parts.platform.stop("nats")
    revoked = await parts.billing.json("DELETE", f"/keys/{key['key_id']}")
    late = await parts.billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "late"})
    await parts.platform.start("nats")
    keys = await parts.bus.jetstream(timeout=5).key_value(topology.KEYS.name)

    async def in_bucket() -> set[str]:
        try:
            return set(await keys.keys())
        except Exception:  # noqa: BLE001 - the bus is on its way back
            return set()

    assert not revoked["propagated"]
    assert not late["propagated"]
    assert await eventually(
        in_bucket, within_s=BACK_S, what="one key", until=lambda found: len(found) == 1
    )
    await parts.gateway.publish(parts.gateway.record(tenant))
    await parts.billing.posted(tenant, 1)


async def test_records_delivered_five_times_and_out_of_order_are_charged_once(parts: Parts) -> None:
    tenant = await parts.billing.tenant()
    records = [parts.gateway.record(tenant) for _ in range(20)]
    deliveries = records * 5
    random.Random(7).shuffle(deliveries)
    for start in range(0, len(deliveries), 3):
        await parts.gateway.publish(*deliveries[start : start + 3])
    last = parts.gateway.record(tenant)
    await parts.gateway.publish(last)

    published = [f"req_{one.request_id.hex()}" for one in (*records, last)]
    assert await charged(parts, tenant, published) == sorted(published)
    assert len(await parts.billing.transfers(tenant_id=tenant)) == 21
    assert await parts.billing.balance(tenant) == -21 * COST_NANOS
