"""What the database itself guarantees, whatever the service does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from billing_parts import WARRANTS, Gateway, Service
from busbar_billing.adapters.bus.usage import read_record
from busbar_billing.adapters.postgres.database import Database as Pool
from busbar_billing.adapters.postgres.database import open_database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.posting import Ledger
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain import ledger
from busbar_billing.domain.leases import Funding
from busbar_billing.domain.usage import UsageVoid
from busbar_billing.usecases.post_usage import charge_of, post_usage, rate_records
from busbar_runtime.pytest_plugin import Database
from harness.polling import eventually
from uuid_utils.compat import uuid7

REFUSED = (asyncpg.InsufficientPrivilegeError, asyncpg.RaiseError)
APPEND_ONLY = ["transfers", "postings", "usage_records", "usage_voids", "price_books", "prices"]
NOT_OURS_TO_CHANGE = ["account_balances", "accounts", "tenants", "work_measured"]


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with open_database(database.billing_dsn) as opened:
        yield opened


@pytest.fixture
async def accounts(admin: asyncpg.Connection, database: Database) -> dict[str, int]:
    """One account of ours in dollars and one in euros, and a second in dollars."""
    del database
    await admin.execute(
        "INSERT INTO accounts (kind, currency) VALUES ('revenue', 'USD'), ('revenue', 'EUR'),"
        " ('payments_clearing', 'USD') ON CONFLICT DO NOTHING"
    )
    rows = await admin.fetch("SELECT * FROM accounts WHERE tenant_id IS NULL")
    return {f"{row['kind']} {row['currency']}": row["account_id"] for row in rows}


@pytest.mark.parametrize("table", APPEND_ONLY + NOT_OURS_TO_CHANGE)
@pytest.mark.parametrize("change", ["DELETE FROM {}", "TRUNCATE {} CASCADE", "DROP TABLE {}"])
async def test_the_service_cannot_take_rows_away(
    as_service: asyncpg.Connection, table: str, change: str
) -> None:
    with pytest.raises(REFUSED):
        await as_service.execute(change.format(table))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE postings SET amount_nanos = 0",
        "UPDATE transfers SET reason = 'x'",
        "UPDATE usage_records SET amount_nanos = 0",
        "UPDATE usage_voids SET reason = ''",
        "UPDATE account_balances SET balance_nanos = 0",
        "UPDATE accounts SET currency = 'EUR'",
        "UPDATE prices SET amount_nanos = 0",
        "UPDATE api_keys SET tenant_id = 'x'",
        "UPDATE tenants SET currency = 'EUR'",
        "INSERT INTO account_balances VALUES (1, 5)",
        "INSERT INTO unsettled_transfers (transfer_id) VALUES (gen_random_uuid())",
        "ALTER TABLE postings DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "CREATE TABLE mine (x int)",
        "SELECT * FROM pg_authid",
    ],
)
async def test_the_service_cannot_change_what_is_written(
    as_service: asyncpg.Connection, change: str
) -> None:
    with pytest.raises(REFUSED):
        await as_service.execute(change)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("transfers", "posted_at"),
        ("usage_records", "posted_at"),
        ("usage_voids", "received_at"),
        ("statements", "issued_at"),
        ("warrants", "made_at"),
    ],
)
async def test_when_a_row_was_written_is_not_the_services_to_say(
    as_service: asyncpg.Connection, table: str, column: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await as_service.execute(f"INSERT INTO {table} ({column}) VALUES ('2020-01-01')")


@pytest.mark.parametrize("table", APPEND_ONLY)
async def test_not_even_the_owner_changes_the_journal_by_accident(
    admin: asyncpg.Connection, table: str
) -> None:
    for change in (f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await admin.execute(change)


async def transfer(connection: asyncpg.Connection) -> UUID:
    identity = uuid4()
    await connection.execute(
        "INSERT INTO transfers (transfer_id, kind, idempotency_key) VALUES ($1, 'correction', $2)",
        identity,
        f"test:{identity}",
    )
    return identity


async def post(connection: asyncpg.Connection, *lines: tuple[UUID, int, int, str, int]) -> None:
    columns = [list(column) for column in zip(*lines, strict=True)]
    await connection.execute(
        "INSERT INTO postings (transfer_id, line, account_id, currency, amount_nanos)"
        " SELECT * FROM unnest($1::uuid[], $2::int2[], $3::int8[], $4::text[], $5::int8[])",
        *columns,
    )


async def test_an_unbalanced_transfer_cannot_be_committed(
    as_service: asyncpg.Connection, accounts: dict[str, int]
) -> None:
    revenue, euros = accounts["revenue USD"], accounts["revenue EUR"]
    wrong: list[list[tuple[int, int, str, int]]] = [
        [(0, revenue, "USD", 5)],
        [(0, revenue, "USD", 5), (1, accounts["payments_clearing USD"], "USD", -4)],
        [(0, revenue, "USD", 5), (1, euros, "EUR", -5)],
    ]
    for lines in wrong:
        attempt = as_service.transaction()
        await attempt.start()
        identity = await transfer(as_service)
        await post(as_service, *[(identity, *line) for line in lines])
        with pytest.raises(asyncpg.CheckViolationError, match="does not sum to zero"):
            await attempt.commit()


async def test_postings_may_come_one_by_one_if_they_balance_at_commit(
    as_service: asyncpg.Connection, admin: asyncpg.Connection, accounts: dict[str, int]
) -> None:
    revenue, clearing = accounts["revenue USD"], accounts["payments_clearing USD"]
    async with as_service.transaction():
        identity = await transfer(as_service)
        await post(as_service, (identity, 0, revenue, "USD", 5))
        await post(as_service, (identity, 1, clearing, "USD", -5))

    assert await admin.fetchval("SELECT count(*) FROM unsettled_transfers") == 0
    with pytest.raises(asyncpg.CheckViolationError, match="does not sum to zero"):
        await post(as_service, (identity, 2, revenue, "USD", 1))


async def test_a_posting_refers_to_a_transfer_and_to_an_account_of_its_currency(
    as_service: asyncpg.Connection, accounts: dict[str, int]
) -> None:
    revenue, clearing = accounts["revenue USD"], accounts["payments_clearing USD"]
    identity = await transfer(as_service)
    wrong = [
        [(uuid4(), 0, revenue, "USD", 5), (uuid4(), 0, clearing, "USD", -5)],
        [(identity, 0, revenue, "EUR", 5), (identity, 1, clearing, "EUR", -5)],
        [(identity, 0, -1, "USD", 5), (identity, 1, clearing, "USD", -5)],
    ]
    for lines in wrong:
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="no such transfer, or account"):
            await post(as_service, *lines)


async def test_balances_are_the_journal_summed_up(
    billing: Service, admin: asyncpg.Connection, pool: Pool
) -> None:
    tenants = [await billing.tenant() for _ in range(4)]
    journal = Journal(pool, WARRANTS)

    async def pay(number: int) -> None:
        tenant_id = tenants[number % len(tenants)]
        await journal.post_once(ledger.top_up(uuid4(), tenant_id, number + 1, "USD", f"{number}"))

    await asyncio.gather(*(pay(number) for number in range(40)))

    async with admin.transaction(isolation="repeatable_read", readonly=True):
        replayed = await admin.fetch(
            "SELECT account_id, sum(amount_nanos) FROM postings GROUP BY 1"
        )
        projected = await admin.fetch("SELECT account_id, balance_nanos FROM account_balances")
    assert dict(map(tuple[Any, Any], replayed)) == dict(map(tuple[Any, Any], projected))
    paid_in = [await billing.balance(tenant_id) for tenant_id in tenants]
    assert paid_in == [sum(range(first + 1, 41, 4)) for first in range(4)]


async def test_the_same_transfer_posted_at_the_same_moment_is_posted_once(
    billing: Service, pool: Pool
) -> None:
    tenant_id = await billing.tenant()
    journal = Journal(pool, WARRANTS)
    attempts = [
        journal.post_once(ledger.top_up(uuid4(), tenant_id, 7, "USD", "same")) for _ in range(8)
    ]
    posted = await asyncio.gather(*attempts)

    assert len({one.transfer.transfer_id for one in posted}) == 1
    assert [one.repeated for one in posted].count(False) == 1
    assert await billing.balance(tenant_id) == 7


async def test_a_void_posted_while_its_record_is_being_posted_waits_and_meets_it(
    billing: Service, gateway: Gateway, pool: Pool, admin: asyncpg.Connection
) -> None:
    tenant_id = await billing.tenant()
    store = Ledger(pool, Journal(pool, WARRANTS), Prices(pool, WARRANTS))
    record = read_record(gateway.record(tenant_id), "g1")
    taken_back = UsageVoid(record.request_id, tenant_id, "not delivered")
    async with store.posting(with_voids=False) as transaction:
        books = await transaction.price_books()
        rated, _ = rate_records([record], books, {tenant_id: "USD"}, uuid7)
        await transaction.add_records(rated)
        voiding = asyncio.create_task(post_usage(store, [], [taken_back], uuid7))

        async def waiting() -> int:
            query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            return await admin.fetchval(query)

        await eventually(waiting, within_s=10, what="the void waits")
        owed = [Funding(0, 0, one.rating.charge_nanos) for one in rated]
        await transaction.add_transfers(list(map(charge_of, rated, owed)))
    report = await voiding

    assert len(report.voided) == 1
    assert await billing.balance(tenant_id) == 0
    assert [one["kind"] for one in await billing.transfers(tenant_id=tenant_id)] == [
        "void",
        "charge",
    ]


async def test_what_refers_to_an_unknown_tenant_or_price_book_is_refused(
    as_service: asyncpg.Connection, billing: Service, gateway: Gateway, tenant: str
) -> None:
    await gateway.publish(gateway.record(tenant))
    await billing.posted(tenant, 1)
    columns = "deployment, price_class, api, outcome, admitted_at, finished_at, input_tokens,"
    columns += " output_tokens, request_bytes, response_bytes, compute_us, node, attempt,"
    columns += " gateway_id, trace_id, rated_class, amount_nanos, currency, transfer_id, key_id"
    copied = (
        f"INSERT INTO usage_records (request_id, tenant_id, price_version, {columns})"
        f" SELECT gen_random_uuid(), $2, $3, {columns} FROM usage_records WHERE tenant_id = $1"
    )
    for stranger, version in (("nobody", 1), (tenant, 999_999)):
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="no price book"):
            await as_service.execute(copied, tenant, stranger, version)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="no tenant nobody"):
        await as_service.execute(
            "INSERT INTO transfers (transfer_id, kind, idempotency_key, tenant_id)"
            " VALUES (gen_random_uuid(), 'correction', 'stray', 'nobody')"
        )
