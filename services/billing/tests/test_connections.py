"""Connections that go back to the pool as they are, and what that relies on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import busbar_billing
import pytest
from busbar_billing.adapters.postgres.database import Database as Pool
from busbar_billing.adapters.postgres.database import open_database
from busbar_runtime.pytest_plugin import Database

OUTLASTS_A_TRANSACTION = re.compile(
    r"""["']\s*(?:SET\s+(?!LOCAL\b)|LISTEN\b)|\bpg_(?:try_)?advisory_lock|\bset_config\(.*\bfalse\)"""
)
SOURCES = Path(busbar_billing.__file__).parent


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with open_database(database.billing_dsn) as opened:
        yield opened


async def test_a_connection_goes_back_without_asking_the_database_again(
    pool: Pool, admin: asyncpg.Connection
) -> None:
    asked = "SELECT pg_backend_pid() -- the last that was asked"
    async with pool.connection() as connection:
        backend = await connection.fetchval(asked)

    last = await admin.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", backend)
    assert last == asked


async def test_what_broke_off_for_a_tenant_leaves_nothing_behind(pool: Pool) -> None:
    backend = 0
    with contextlib.suppress(LookupError):
        async with pool.as_tenant("t_1") as connection:
            backend = await connection.fetchval("SELECT pg_backend_pid()")
            raise LookupError

    async with pool.connection() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") == backend
        assert await connection.fetchval("SELECT current_user") != "busbar_billing_tenant"
        assert not await connection.fetchval("SELECT current_setting('busbar.tenant_id', true)")


@pytest.mark.parametrize(
    "statement",
    ['"SET statement_timeout = 1"', '"SELECT pg_advisory_lock(1)"', '"LISTEN news"'],
)
def test_what_outlasts_a_transaction_is_seen(statement: str) -> None:
    assert OUTLASTS_A_TRANSACTION.search(statement)


def test_nothing_is_set_or_locked_for_longer_than_a_transaction() -> None:
    sources = {path: path.read_text() for path in SOURCES.rglob("*.py")}

    assert sources
    assert not [path for path, text in sources.items() if OUTLASTS_A_TRANSACTION.search(text)]
