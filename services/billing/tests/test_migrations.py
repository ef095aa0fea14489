"""The migrations: linted, repeatable, reversible, safe to run twice at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import asyncpg
import pytest
from busbar_billing.migrate import admit_service, apply_migrations, dbmate_url, migrations_directory
from busbar_runtime.pytest_plugin import PostgresServer

SCRIPTS = Path(sysconfig.get_path("scripts"))
NOT_FOR_US = [
    # Tables are made and indexed in one file, where nobody uses them yet.
    "require-concurrent-index-creation",
    "prefer-robust-stmts",
    "require-lock-timeout",
    "require-statement-timeout",
    # Constraints of tables that a release or two filled: checked in the moment of the upgrade.
    "constraint-missing-not-valid",
    "adding-foreign-key-constraint",
    "disallowed-unique-constraint",
    # The way down.
    "ban-drop-column",
    "ban-drop-constraint",
    "ban-drop-table",
    "ban-drop-function",
    "require-concurrent-index-deletion",
    # attempt is an int32 in the proto, line and shard are tiny.
    "prefer-bigint-over-int",
    "prefer-bigint-over-smallint",
]


def test_squawk_has_nothing_to_say() -> None:
    files = [str(path) for path in sorted(migrations_directory().glob("*.sql"))]
    excluded = [f"--exclude={rule}" for rule in NOT_FOR_US]
    command = [str(SCRIPTS / "squawk"), "--pg-version=18", *excluded, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


async def test_two_at_once_migrate_once_and_the_service_can_log_in(
    postgres_server: PostgresServer,
) -> None:
    database = postgres_server.create_database()
    await asyncio.gather(
        *(asyncio.to_thread(apply_migrations, database.admin_dsn) for _ in range(2))
    )
    await asyncio.gather(
        *(admit_service(database.admin_dsn, database.billing_dsn) for _ in range(2))
    )

    connection = await asyncpg.connect(database.billing_dsn)
    applied = await connection.fetchval("SELECT count(*) FROM price_books")
    await connection.close()
    assert applied == 1


async def test_every_migration_has_a_way_down(postgres_server: PostgresServer) -> None:
    database = postgres_server.create_database()
    await asyncio.to_thread(apply_migrations, database.admin_dsn)
    files = sorted(migrations_directory().glob("*.sql"))
    for _ in files:
        command = [str(SCRIPTS / "dbmate"), "--url", dbmate_url(database.admin_dsn)]
        command += ["--migrations-dir", str(migrations_directory()), "--no-dump-schema", "down"]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)

    connection = await asyncpg.connect(database.admin_dsn)
    left = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    assert [row["tablename"] for row in left] == ["schema_migrations"]


async def test_the_service_may_not_be_the_administrator(postgres_server: PostgresServer) -> None:
    with pytest.raises(ValueError, match="user of its own"):
        await admit_service(postgres_server.admin_dsn, postgres_server.admin_dsn)


def test_without_a_database_it_says_so_and_keeps_the_password_to_itself() -> None:
    environment = {
        **os.environ,
        "BUSBAR_POSTGRES_ADMIN_DSN": "postgresql://nobody:secret@127.0.0.1:1/none",
        "BUSBAR_POSTGRES_WAIT": "PT0.5S",
    }
    command = [sys.executable, "-m", "busbar_billing.migrate"]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert result.returncode == 1
    assert "127.0.0.1" in result.stderr
    assert "secret" not in result.stdout + result.stderr
