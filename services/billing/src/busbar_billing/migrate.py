"""Bring the ledger's database to this release: `python -m busbar_billing.migrate`.

Runs the plain SQL files in order with dbmate, one runner at a time, then sees
that every table keeps tenants apart and that the service can log in: the user of
BUSBAR_POSTGRES_DSN is created or given that password, and the role that the
migrations grant rights to.
Exit status: 0 done, 1 refused, 2 no database.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import sysconfig
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

from busbar_billing.settings import MigrationSettings

SERVICE_ROLE = "busbar_billing_service"
_CONNECT_TIMEOUT_S = 10
_LOGIN_LOCK = 0x62_75_73_6C_6F_67


def migrations_directory() -> Path:
    """Where the SQL files are: inside the installed package, or beside its sources."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "migrations"


def dbmate_url(dsn: str) -> str:
    """The DSN as dbmate needs it; it insists on TLS unless told, while Postgres prefers it."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    query.setdefault("sslmode", "prefer")
    return urlunsplit(parts._replace(query=urlencode(query)))


def apply_migrations(dsn: str, wait: timedelta = timedelta(minutes=1)) -> None:
    """Apply what is not applied yet; raises CalledProcessError when one fails."""
    dbmate = Path(sysconfig.get_path("scripts")) / "dbmate"
    command = [str(dbmate) if dbmate.exists() else "dbmate"]
    command += ["--env", "BUSBAR_MIGRATION_URL", "--env-file", os.devnull]
    command += ["--migrations-dir", str(migrations_directory()), "--no-dump-schema"]
    command += ["--migration-lock", "--wait", "--wait-timeout", f"{wait.total_seconds()}s"]
    command += ["--wait-interval", "200ms", "migrate"]
    # The URL holds a password: in the environment nobody else can read it.
    environment = {**os.environ, "BUSBAR_MIGRATION_URL": dbmate_url(dsn)}
    subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603


async def isolate_tenants(admin_dsn: str) -> None:
    """Let row-level security hold for whatever tables there are now; the auditor sees all."""
    connection = await asyncpg.connect(admin_dsn, timeout=_CONNECT_TIMEOUT_S)
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOGIN_LOCK})")
            await connection.execute("SELECT isolate_tenants()")
            await connection.execute("SELECT let_auditor_read()")
    finally:
        await connection.close()


async def admit_service(admin_dsn: str, service_dsn: str) -> None:
    """Let the user of `service_dsn` log in with its password, as the service."""
    parts = urlsplit(service_dsn)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user or user == unquote(urlsplit(admin_dsn).username or ""):
        raise ValueError("BUSBAR_POSTGRES_DSN must name a user of its own, not the admin's")
    connection = await asyncpg.connect(admin_dsn, timeout=_CONNECT_TIMEOUT_S)
    try:
        async with connection.transaction():
            # Roles belong to the whole server: one runner at a time, whatever its database.
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOGIN_LOCK})")
            for statement in await _login_statements(connection, user, password):
                await connection.execute(statement)
    finally:
        await connection.close()


async def _login_statements(connection: asyncpg.Connection, user: str, password: str) -> list[str]:
    exists = await connection.fetchval("SELECT TRUE FROM pg_roles WHERE rolname = $1", user)
    verb = "ALTER" if exists else "CREATE"
    # Statements about roles take no parameters; format() quotes what goes into them.
    login = await connection.fetchval(
        f"SELECT format('{verb} ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE', $1::text)", user
    )
    statements = [str(login)]
    if password:
        query = "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)"
        statements.append(str(await connection.fetchval(query, user, password)))
    if user != SERVICE_ROLE:
        query = "SELECT format('GRANT %I TO %I', $1::text, $2::text)"
        statements.append(str(await connection.fetchval(query, SERVICE_ROLE, user)))
    return statements


def main() -> int:
    """Entry point of the command line."""
    settings = MigrationSettings()  # pyright: ignore[reportCallIssue]
    admin_dsn = settings.postgres_admin_dsn.get_secret_value()
    try:
        apply_migrations(admin_dsn, settings.postgres_wait)
        asyncio.run(isolate_tenants(admin_dsn))
        if settings.postgres_dsn is not None:
            asyncio.run(admit_service(admin_dsn, settings.postgres_dsn.get_secret_value()))
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"dbmate ended with status {error.returncode}; its message is above\n")
        return 1
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (OSError, asyncpg.PostgresError) as error:
        sys.stderr.write(f"the database refused: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
