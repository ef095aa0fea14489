"""A backlog is posted, and what comes meanwhile does not wait behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import asyncpg
import pytest
from billing_parts import WARRANTS, Gateway, Service, running
from busbar_billing.adapters.bus.answers import DeliveredAnswers
from busbar_billing.adapters.postgres.audit_inbox import AuditedInbox
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain.audit.findings import Report
from busbar_billing.usecases.audit_answers import Answers, Extent, check_answers
from busbar_messaging.replaying import letters
from busbar_runtime.ports import PortPool
from harness.polling import eventually
from ledger_checks import assert_ledger_holds
from neighbours import Neighbours, neighbours

TENANT = "backlog-test"
FRESH_KEY = "key_fresh"
MESSAGES, RECORDS_EACH, AT_ONCE = 9_000, 2, 500
BACKLOG = MESSAGES * RECORDS_EACH
"""Some seconds of work for billing, so that half a second in which only others run is little."""
OLD_S = 2.5
"""Billing takes messages of that age for a backlog, if there are many."""
FRESH_AT_ONCE = 5
AUDITED_OF_BACKLOG = 300
DRAINED_WITHIN_S = 60
DISK_BYTES = 1024 * 1024 * 1024
UNREADABLE, POISON_AT = b"\xff", 3
POSTED_FRESH = "SELECT count(*) FROM usage_records WHERE key_id = $1"
POSTED_OF_BACKLOG = "SELECT count(*) FROM usage_records WHERE key_id <> $1"
POSTED_MEANWHILE = """
    SELECT count(old.request_id)
    FROM unnest($1::uuid[], $2::timestamptz[]) AS one (id, came)
    JOIN usage_records AS fresh ON fresh.request_id = one.id
    LEFT JOIN usage_records AS old
    ON old.key_id <> $3 AND old.posted_at > one.came AND old.posted_at <= fresh.posted_at
    GROUP BY one.id
"""
CLOCK = "SELECT clock_timestamp()"


@pytest.fixture
async def around(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Neighbours]:
    async with neighbours(tmp_path_factory.mktemp("backlog"), DISK_BYTES) as found:
        yield found


@dataclass
class Fresh:
    """Records that come beside a backlog, and how much of it was posted while each waited, by what
    the database noted; so that neither how fast the machine is matters, nor when we look."""

    gateway: Gateway
    database: asyncpg.Connection
    probes: int = 0
    came: dict[UUID, datetime] = field(default_factory=dict[UUID, datetime])

    async def probe(self) -> None:
        """A record that may be backlog: billing has not said yet where that ends."""
        self.probes += 1
        await self.gateway.publish(self.gateway.record(TENANT, key_id=FRESH_KEY))

    async def come(self) -> None:
        """A record: every seventh twice, every tenth with a void; with the third come two that
        nobody can bill."""
        record = self.gateway.record(TENANT, key_id=FRESH_KEY)
        number = len(self.came)
        if number == POISON_AT:
            await self.gateway.publish_raw(UNREADABLE)
            await self.gateway.publish(self.gateway.record("nobody-we-know"))
        voids = (self.gateway.void(record),) if number % 10 == 0 else ()
        await self.gateway.publish(record, voids=voids)
        self.came[UUID(bytes=record.request_id)] = await self.database.fetchval(CLOCK)
        if number % 7 == 0:
            await self.gateway.publish(record)

    @property
    def count(self) -> int:
        """How many there are."""
        return self.probes + len(self.came)

    async def of_backlog(self) -> int:
        """How much of the backlog is posted."""
        return await self.database.fetchval(POSTED_OF_BACKLOG, FRESH_KEY)

    async def all_posted(self) -> bool:
        """Whether nothing waits any more."""
        return await self.database.fetchval(POSTED_FRESH, FRESH_KEY) == self.count

    async def waited_for(self) -> list[int]:
        """How many records of the backlog were posted while each waited."""
        came = list(self.came), list(self.came.values())
        return [
            row["count"] for row in await self.database.fetch(POSTED_MEANWHILE, *came, FRESH_KEY)
        ]


async def pile_up(gateway: Gateway) -> None:
    """What nobody posts yet."""
    for _ in range(0, MESSAGES, AT_ONCE):
        batches = [[gateway.record(TENANT) for _ in range(RECORDS_EACH)] for _ in range(AT_ONCE)]
        await asyncio.gather(*(gateway.publish(*records) for records in batches))


async def drain(fresh: Fresh, billing: Service) -> None:
    """Let records come until the backlog is posted."""
    beside = False

    async def through() -> bool:
        nonlocal beside
        beside = beside or await billing.metric("busbar_billing_fresh_lag_seconds") > 0
        for _ in range(FRESH_AT_ONCE):
            await (fresh.come() if beside else fresh.probe())
        return await fresh.of_backlog() >= BACKLOG

    await eventually(through, within_s=DRAINED_WITHIN_S, what="the backlog is posted")


async def assert_audit_clean(around: Neighbours, last: int) -> None:
    """Once the consumer is through, what came last in the backlog and all that came beside it is
    charged as it was delivered, both ways."""
    stream = DeliveredAnswers(around.bus)

    async def extent() -> Extent:
        return await stream.extent()

    reached = await eventually(
        extent, within_s=DRAINED_WITHIN_S, what="through", until=lambda now: now.posted >= last
    )
    async with open_database(around.environment["BUSBAR_POSTGRES_DSN"]) as pool:
        report = Report()
        answers = Answers(stream, AuditedInbox(pool, Prices(pool, WARRANTS)))
        await check_answers(
            answers, MESSAGES - AUDITED_OF_BACKLOG, reached, report, lambda _check, _rows: None
        )
    assert report.breaches == []


async def test_fresh_records_do_not_wait_behind_a_backlog(
    around: Neighbours, ports: PortPool
) -> None:
    gateway, database = around.gateway, await around.database()
    await database.execute(
        "INSERT INTO tenants (tenant_id, name, currency) VALUES ($1, 'Backlog Ltd', 'USD')", TENANT
    )
    began = time.monotonic()
    await pile_up(gateway)

    async def old() -> bool:
        return time.monotonic() > began + OLD_S

    await eventually(old, within_s=10, what="a backlog of an age")
    fresh = Fresh(gateway, database)
    async with running(around.environment, ports) as billing:
        await drain(fresh, billing)
        last = await gateway.publish(gateway.record(TENANT))
        await eventually(fresh.all_posted, within_s=30, what="all is posted")
        await assert_audit_clean(around, last)
        beside = await billing.metric("busbar_billing_duplicates_total")

    # Behind the backlog the first would have waited for nearly all of it.
    assert len(fresh.came) > POISON_AT, "the backlog was gone before anything came beside it"
    waited_for = await fresh.waited_for()
    assert len(waited_for) == len(fresh.came)
    assert max(waited_for) <= BACKLOG / 2
    assert beside > len(fresh.came) / 2, "the backlog did not come to what was posted beside it"
    rows = await database.fetchval("SELECT count(*) FROM usage_records")
    assert rows == BACKLOG + fresh.count + 1
    await assert_ledger_holds(database)
    held = [one async for one in letters(around.bus.jetstream(timeout=5))]
    assert len(held) == 2, "a dead letter for each, however often it was met"
    assert UNREADABLE in [one.payload for one in held]
    assert "deadlock" not in around.platform.log("postgres")
    await database.close()
