"""What the database shows to whoever reads for one tenant: its own rows, whatever is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from billing_parts import Gateway, Service
from busbar_billing.adapters.postgres.database import Database as Pool
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.migrate import isolate_tenants
from busbar_errors import Unavailable
from busbar_runtime.pytest_plugin import Database

OWN_ROWS = [
    "tenants",
    "usage_records",
    "usage_voids",
    "accounts",
    "account_balances",
    "transfers",
    "postings",
    "promotional_credits",
    "promotional_spending",
    "promotional_unspent",
    "tenant_months",
]
NOT_SHOWN = ["leases", "work_measured", "unsettled_transfers"]


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with open_database(database.billing_dsn) as opened:
        yield opened


@pytest.fixture
async def two(billing: Service, gateway: Gateway) -> tuple[str, str]:
    """Two tenants with something in every table."""
    tenants = (await billing.tenant(), await billing.tenant())
    for tenant in tenants:
        gift = {
            "amount_nanos": 50_000,
            "currency": "USD",
            "reference": "gift",
            "expires_at": "2090-01-01T00:00:00Z",
        }
        await billing.json("POST", f"/tenants/{tenant}/credits", json=gift)
        await billing.json("POST", f"/tenants/{tenant}/keys", json={"name": "k"})
        voided = gateway.record(tenant)
        await gateway.publish(gateway.record(tenant), voided, voids=(gateway.void(voided),))
    await asyncio.gather(*(billing.posted(tenant, 2) for tenant in tenants))
    return tenants


async def seen(pool: Pool, tenant: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
    async with pool.as_tenant(tenant) as connection:
        return await connection.fetch(query, *arguments)


@pytest.mark.parametrize("table", OWN_ROWS)
async def test_a_tenant_sees_its_own_rows_and_no_others(
    pool: Pool, two: tuple[str, str], admin: asyncpg.Connection, table: str
) -> None:
    mine, theirs = two
    whose = {
        "account_balances": "SELECT account_id FROM accounts WHERE tenant_id = $1",
        "postings": "SELECT account_id FROM accounts WHERE tenant_id = $1",
        "promotional_spending": "SELECT credit_id FROM promotional_credits WHERE tenant_id = $1",
    }.get(table)
    column = {"promotional_spending": "credit_id"}.get(table, "account_id")
    of_one = f"{column} IN ({whose})" if whose else "tenant_id = $1"
    owned = await admin.fetchval(f"SELECT count(*) FROM {table} WHERE {of_one}", mine)
    shown = await seen(pool, mine, f"SELECT count(*) FROM {table}")
    of_theirs = await seen(pool, mine, f"SELECT count(*) FROM {table} WHERE {of_one}", theirs)

    assert owned > 0
    assert shown[0]["count"] == owned
    assert of_theirs[0]["count"] == 0


@pytest.mark.parametrize(
    "tenant", ["", "nobody", "' OR true --", "%", "busbar_billing_service", "*"]
)
async def test_nobody_in_particular_sees_nothing(
    pool: Pool, two: tuple[str, str], tenant: str
) -> None:
    del two
    for table in OWN_ROWS:
        assert (await seen(pool, tenant, f"SELECT count(*) FROM {table}"))[0]["count"] == 0


async def test_without_a_tenant_set_nothing_is_seen(
    as_service: asyncpg.Connection, two: tuple[str, str]
) -> None:
    del two
    async with as_service.transaction():
        await as_service.execute("SET LOCAL ROLE busbar_billing_tenant")
        for table in OWN_ROWS:
            assert await as_service.fetchval(f"SELECT count(*) FROM {table}") == 0


@pytest.mark.parametrize(
    "statement",
    [
        *[f"SELECT * FROM {table}" for table in NOT_SHOWN],
        "SELECT key_hmac FROM api_keys",
        "SELECT * FROM api_keys",
        "INSERT INTO usage_voids VALUES (gen_random_uuid(), 'x', 'x')",
        "UPDATE tenants SET name = 'x'",
        "DELETE FROM usage_records",
        "UPDATE monthly_use SET quantity = 0",
        "SELECT * FROM lock_promotional_credits('{}')",
        "SELECT lock_available('x', 'USD')",
        "SELECT isolate_tenants()",
        "ALTER TABLE usage_records DISABLE ROW LEVEL SECURITY",
        "DROP POLICY tenant_sees_own ON usage_records",
        "CREATE TABLE mine (x int)",
    ],
)
async def test_a_tenant_can_do_nothing_but_read_what_is_shown(
    as_service: asyncpg.Connection, statement: str
) -> None:
    async with as_service.transaction():  # and not even a read-only one
        await as_service.execute("SET LOCAL ROLE busbar_billing_tenant")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_service.execute(statement)


async def test_what_reads_for_a_tenant_writes_nothing(pool: Pool, two: tuple[str, str]) -> None:
    with pytest.raises((Unavailable, asyncpg.PostgresError)):
        await seen(pool, two[0], "RESET ROLE; DELETE FROM usage_voids")


async def test_a_tenant_sees_everybodys_prices_and_its_own(
    billing: Service, pool: Pool, two: tuple[str, str]
) -> None:
    for tenant in two:
        body = {"tenant_id": tenant, "classes": {"default": {"request": {"amount_nanos": 1}}}}
        await billing.json("POST", "/prices", json=body)
    rows = await seen(pool, two[0], "SELECT DISTINCT tenant_id FROM price_books")

    assert {row["tenant_id"] for row in rows} == {None, two[0]}


async def test_the_connection_is_the_services_again_afterwards(
    pool: Pool, two: tuple[str, str]
) -> None:
    await seen(pool, two[0], "SELECT")
    async with pool.connection() as connection:
        for _ in range(2):
            assert await connection.fetchval("SELECT current_user") != "busbar_billing_tenant"
            assert await connection.fetchval("SELECT current_tenant()") is None
            assert await connection.fetchval("SELECT count(*) FROM tenants") >= 2


async def test_no_table_with_a_tenant_is_without_isolation(
    admin: asyncpg.Connection, database: Database
) -> None:
    await admin.execute("CREATE TABLE new_in_a_later_release (tenant_id text)")
    try:
        await isolate_tenants(database.admin_dsn)
        await isolate_tenants(database.admin_dsn)
        open_to_all = await admin.fetch(
            "SELECT c.relname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
            " AND a.attname = 'tenant_id' AND NOT c.relrowsecurity"
        )
    finally:
        await admin.execute("DROP TABLE new_in_a_later_release")

    assert open_to_all == []
