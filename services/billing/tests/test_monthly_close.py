"""Months close by themselves: once each, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest
from billing_parts import WARRANTS
from busbar_billing.adapters.on_duty import OnDuty
from busbar_billing.adapters.postgres.database import Database as Pool
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.duties import Duties, Duty
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.domain.statements import Month
from busbar_billing.migrate import admit_service, apply_migrations
from busbar_billing.usecases.statements import close_all_due
from busbar_errors import Conflict
from busbar_runtime.pytest_plugin import Database, PostgresServer

TENANTS = 102
"""More than are closed at one cut."""
MONTHS = ["2026-08", "2026-09"]
HELD_FOR, SOON_S = timedelta(minutes=10), 60
"""Who has to wait until a duty is not held any more waits for longer than a test does."""
OVER_AT = datetime(2026, 10, 1, 5, tzinfo=UTC)
FILL = """
    INSERT INTO tenants (tenant_id, name, currency, created_at)
    SELECT 't' || n, 'Tenant ' || n, 'USD', '2026-08-12 10:00+00' FROM generate_series(1, $1) AS n
"""
ISSUED = """
    SELECT tenant_id, to_char(period_start, 'YYYY-MM') AS month, sequence
    FROM statements ORDER BY sequence
"""


@pytest.fixture
async def ledger(postgres_server: PostgresServer) -> Database:
    """A ledger with tenants that have a past and no statement."""
    made = postgres_server.create_database()
    await asyncio.to_thread(apply_migrations, made.admin_dsn)
    await admit_service(made.admin_dsn, made.billing_dsn)
    connection = await asyncpg.connect(made.admin_dsn)
    await connection.execute(FILL, TENANTS)
    await connection.close()
    return made


@pytest.fixture
async def owner(ledger: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(ledger.admin_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def pool(ledger: Database) -> AsyncIterator[Pool]:
    async with open_database(ledger.billing_dsn) as opened:
        yield opened


@dataclass
class Backlog:
    """Usage that is posted, or waits."""

    waits: bool = False

    async def require_posted(self) -> None:
        if self.waits:
            raise Conflict("usage is not posted yet")


def store(pool: Pool) -> Statements:
    return Statements(pool, Journal(pool, WARRANTS), Prices(pool, WARRANTS))


def on_duty(pool: Pool) -> OnDuty:
    return OnDuty(
        Duties(pool), Duty.CLOSE_MONTHS, held_for=HELD_FOR, renewed_every=timedelta(milliseconds=50)
    )


async def test_every_month_that_is_over_is_closed_once_without_gaps(
    pool: Pool, owner: asyncpg.Connection
) -> None:
    first = await close_all_due(store(pool), Backlog(), OVER_AT, lambda: True)
    again = await close_all_due(store(pool), Backlog(), OVER_AT, lambda: True)

    rows = await owner.fetch(ISSUED)
    assert (first.issued, first.failed) == (TENANTS * len(MONTHS), {})
    assert (again.issued, again.failed) == (0, {})
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))
    closed = [row["month"] for row in rows if row["tenant_id"] == "t7"]
    assert closed == MONTHS


async def test_a_month_waits_for_its_delay(pool: Pool) -> None:
    over = datetime(2026, 10, 1, tzinfo=UTC)
    before = await close_all_due(store(pool), Backlog(), over - timedelta(seconds=1), lambda: True)
    after = await close_all_due(store(pool), Backlog(), over, lambda: True)

    assert before.issued == TENANTS
    assert after.issued == TENANTS


async def test_nothing_is_closed_while_usage_waits_to_be_posted(
    pool: Pool, owner: asyncpg.Connection
) -> None:
    with pytest.raises(Conflict):
        await close_all_due(store(pool), Backlog(waits=True), OVER_AT, lambda: True)

    assert await owner.fetch(ISSUED) == []


async def test_one_tenant_that_cannot_be_closed_keeps_nobody_waiting(
    pool: Pool, owner: asyncpg.Connection
) -> None:
    await owner.execute("INSERT INTO accounts (kind, tenant_id, currency) VALUES"
                        " ('tenant_available', 't5', 'USD')")  # fmt: skip
    await owner.execute(
        "INSERT INTO account_balances SELECT account_id, 77 FROM accounts WHERE tenant_id = 't5'"
    )
    done = await close_all_due(store(pool), Backlog(), OVER_AT, lambda: True)

    assert done.issued == (TENANTS - 1) * len(MONTHS)
    assert list(done.failed) == ["t5"]
    assert "2026-08" in done.failed["t5"]


async def test_two_that_close_at_the_same_time_issue_each_statement_once(
    pool: Pool, owner: asyncpg.Connection
) -> None:
    both = await asyncio.gather(
        *(close_all_due(store(pool), Backlog(), OVER_AT, lambda: True) for _ in range(2))
    )

    rows = await owner.fetch(ISSUED)
    assert sum(one.issued for one in both) == TENANTS * len(MONTHS) == len(rows)
    assert [one.failed for one in both] == [{}, {}]
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))


async def test_a_month_closed_after_this_cut_is_not_gone_on_from(pool: Pool) -> None:
    older = await store(pool).cut()
    await close_all_due(store(pool), Backlog(), datetime(2026, 9, 1, tzinfo=UTC), lambda: True)

    class Cut(Statements):
        async def cut(self) -> datetime:
            return older

    late = Cut(pool, Journal(pool, WARRANTS), Prices(pool, WARRANTS))
    done = await close_all_due(late, Backlog(), OVER_AT, lambda: True)

    assert (done.issued, done.failed) == (0, {})
    last = await store(pool).last_closed("t7")
    assert last is not None
    assert last.month == Month(date(2026, 8, 1))


async def test_a_duty_that_is_given_up_is_another_instances_at_once(pool: Pool) -> None:
    first, second = on_duty(pool), on_duty(pool)
    holding = asyncio.create_task(first.run())
    await asyncio.wait_for(first.begin(), SOON_S)
    waiting = asyncio.create_task(second.run())
    assert not await second.duties.take(Duty.CLOSE_MONTHS, "third", timedelta(minutes=1))
    assert not second.held

    holding.cancel()
    await asyncio.wait([holding])
    await asyncio.wait_for(second.begin(), SOON_S)

    assert not first.held
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_duty_whose_holder_was_killed_is_taken_over(
    pool: Pool, owner: asyncpg.Connection
) -> None:
    duties = Duties(pool)
    assert await duties.take(Duty.AUDIT, "killed", HELD_FOR)
    assert not await duties.take(Duty.AUDIT, "other", timedelta(minutes=1))
    assert await duties.take(Duty.CLOSE_MONTHS, "other", timedelta(minutes=1))

    # As if the time were over for which it had asked.
    await owner.execute("UPDATE duties SET held_until = now() WHERE duty = $1", Duty.AUDIT.value)
    assert await duties.take(Duty.AUDIT, "other", timedelta(minutes=1))
    await duties.give_up(Duty.AUDIT, "killed")  # is another's: nothing happens
    assert not await duties.take(Duty.AUDIT, "third", timedelta(minutes=1))
