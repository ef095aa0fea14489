"""Several billings at one outbox: each message is somebody's, and only its holder has a say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from busbar_billing.adapters.postgres.database import Database, open_database
from busbar_billing.adapters.postgres.deliveries import PER_TENANT_AT_ONCE, Deliveries, Due
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.domain.webhooks import (
    WAITING_PER_ENDPOINT_MAX,
    Attempt,
    EventType,
    Notice,
    Verdict,
)
from busbar_billing.migrate import admit_service, apply_migrations
from busbar_runtime.pytest_plugin import PostgresServer

TENANTS = [f"t{number}" for number in range(12)]
LATER = Verdict(timedelta(hours=1))


@pytest.fixture(scope="module")
async def database(postgres_server: PostgresServer) -> AsyncIterator[tuple[Database, str]]:
    """One without a courier, and its owner's address."""
    created = postgres_server.create_database()
    await asyncio.to_thread(apply_migrations, created.admin_dsn)
    await admit_service(created.admin_dsn, created.billing_dsn)
    async with open_database(created.billing_dsn) as opened:
        yield opened, created.admin_dsn


@pytest.fixture
async def admin(database: tuple[Database, str]) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database[1])
    yield connection
    await connection.close()


@pytest.fixture
async def outbox(database: tuple[Database, str], admin: asyncpg.Connection) -> Database:
    """Empty; a dozen tenants, each with an endpoint for everything."""
    await admin.execute("DELETE FROM webhook_messages")
    for tenant in TENANTS:
        query = "INSERT INTO tenants (tenant_id, name, currency) VALUES ($1, $1, 'USD')"
        await admin.execute(query + " ON CONFLICT DO NOTHING", tenant)
        query = """
            INSERT INTO webhook_endpoints (endpoint_id, tenant_id, url, salt)
            VALUES ('whe_' || md5($1), $1, 'https://example.com/', decode(repeat('00', 32), 'hex'))
            ON CONFLICT DO NOTHING
        """
        await admin.execute(query, tenant)
    return database[0]


async def tell(outbox: Database, *tenants: str) -> None:
    async with outbox.transaction() as connection:
        notices = [Notice(one, EventType.BALANCE_LOW, {"tenant_id": one}) for one in tenants]
        await put_notices(connection, notices)


async def test_what_several_take_at_once_is_disjoint_and_fair(outbox: Database) -> None:
    await tell(outbox, *[tenant for tenant in TENANTS for _ in range(5)])
    deliveries = Deliveries(outbox)
    taken = await asyncio.gather(*[deliveries.claim(6, []) for _ in range(4)])
    ids = [due.delivery_id for some in taken for due in some]

    assert len(ids) == len(set(ids)) > 0
    for some in taken:
        of_tenant = Counter(due.endpoint.tenant_id for due in some)
        assert len(some) <= 6
        assert max(of_tenant.values(), default=0) <= PER_TENANT_AT_ONCE


async def test_who_has_enough_under_way_gets_no_more_and_holds_nobody_up(outbox: Database) -> None:
    busy, *others = TENANTS
    await tell(outbox, *[busy] * 300, *others)
    taken = await Deliveries(outbox).claim(16, [busy])

    assert {due.endpoint.tenant_id for due in taken} == set(others)


async def taken_over(outbox: Database, admin: asyncpg.Connection) -> tuple[Due, Due]:
    """A message that one had for too long, so that another took it."""
    await tell(outbox, TENANTS[0])
    [late] = await Deliveries(outbox).claim(1, [])
    assert await Deliveries(outbox).claim(1, []) == []
    await admin.execute("UPDATE webhook_deliveries SET next_attempt_at = now()")
    [holder] = await Deliveries(outbox).claim(1, [])
    return late, holder


async def test_only_who_holds_a_message_says_what_became_of_it(
    outbox: Database, admin: asyncpg.Connection
) -> None:
    late, holder = await taken_over(outbox, admin)
    deliveries = Deliveries(outbox)
    await deliveries.failed(late, Attempt(500), Verdict(None, "gone"))
    disabled = await admin.fetchval("SELECT count(disabled_at) FROM webhook_endpoints")
    between = await admin.fetchval("SELECT state FROM webhook_deliveries")
    await deliveries.delivered(holder, Attempt(200))
    await deliveries.failed(holder, Attempt(500), LATER)

    assert (late.message_id, late.number) == (holder.message_id, holder.number - 1)
    assert (disabled, between) == (0, "pending")
    assert await admin.fetchval("SELECT state FROM webhook_deliveries") == "delivered"


async def test_a_fact_that_is_rolled_back_is_not_told(
    outbox: Database, admin: asyncpg.Connection
) -> None:
    async def told_in_vain() -> None:
        async with outbox.transaction() as connection:
            await put_notices(connection, [Notice(TENANTS[0], EventType.BALANCE_LOW, {})])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await told_in_vain()

    assert await admin.fetchval("SELECT count(*) FROM webhook_messages") == 0


async def test_an_endpoint_that_takes_nothing_is_not_told_without_bounds(
    outbox: Database, admin: asyncpg.Connection
) -> None:
    await tell(outbox, *[TENANTS[0]] * WAITING_PER_ENDPOINT_MAX)
    await tell(outbox, TENANTS[0], TENANTS[1])
    query = "SELECT tenant_id, count(*) FROM webhook_deliveries GROUP BY 1"
    waiting = {row["tenant_id"]: row["count"] for row in await admin.fetch(query)}

    assert waiting == {TENANTS[0]: WAITING_PER_ENDPOINT_MAX, TENANTS[1]: 1}


async def test_what_is_old_is_forgotten(outbox: Database, admin: asyncpg.Connection) -> None:
    await tell(outbox, *[TENANTS[0]] * 600, *[TENANTS[1]] * 600)
    old = "UPDATE webhook_messages SET occurred_at = now() - interval '31 days'"
    await admin.execute(old)
    await tell(outbox, TENANTS[2])

    assert await Deliveries(outbox).prune() == 1_200
    assert await admin.fetchval("SELECT count(*) FROM webhook_deliveries") == 1
