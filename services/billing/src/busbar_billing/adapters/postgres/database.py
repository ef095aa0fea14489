"""Connections to Postgres that come back by themselves, and its errors in our terms."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Protocol, TypeAlias

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy
from busbar_errors import Unavailable

log = structlog.get_logger()

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

CONNECTIONS_MAX = 10
ACQUIRE_TIMEOUT = timedelta(seconds=5)
STATEMENT_TIMEOUT = timedelta(seconds=10)
READING_MAX = timedelta(minutes=10)
"""Closing a tenant's month, counting it again and replaying an account that a year was posted to
are one statement each: what the one may take the other must have."""
AUDIT_TIMEOUT_MS = int(READING_MAX.total_seconds() * 1000)
_PROBE_PAUSE_MAX_S = 1.0

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection broke while a statement was prepared
    asyncpg.OperatorInterventionError,  # restarting, or a statement timed out
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.TransactionRollbackError,  # deadlock or serialization failure
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.ReadOnlySQLTransactionError,  # failed over to a replica
    # A database that is not migrated yet says these; no message may be given up for that.
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InsufficientPrivilegeError,
)


@contextlib.contextmanager
def in_our_terms() -> Iterator[None]:
    """Raise Unavailable for whatever a later try may survive; bugs pass through."""
    try:
        yield
    except asyncpg.DataError:
        raise
    except _AWAY as error:
        raise Unavailable(f"the ledger database does not answer: {error!r}") from error


class Connections(Protocol):
    """Where adapters get connections: the service's, or what one tenant may see."""

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """A connection, outside of a transaction or in one that only reads."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """A connection inside a transaction, committed on a clean exit."""
        ...


class Database:
    """A pool that connects when it is needed, so that the service starts without a database."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        self._pool = pool
        self.reachable = False

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection, outside of a transaction. Raises Unavailable."""
        try:
            with in_our_terms():
                async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT.total_seconds()) as held:
                    yield held
        except Unavailable as error:
            if self.reachable:
                log.warning("database away", reason=error.reason)
            self.reachable = False
            raise

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside a transaction, committed on a clean exit. Raises Unavailable."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @contextlib.asynccontextmanager
    async def as_tenant(self, tenant_id: str) -> AsyncIterator[Connection]:
        """A connection that sees the rows of one tenant and no others, and changes nothing.

        The database says so by row-level security, whatever is asked. Raises Unavailable.
        """
        async with self.connection() as connection, connection.transaction(readonly=True):
            await connection.execute("SET LOCAL ROLE busbar_billing_tenant")
            await connection.execute("SELECT set_config('busbar.tenant_id', $1, true)", tenant_id)
            yield connection

    def seen_by(self, tenant_id: str) -> TenantView:
        """What the tenant sees of it."""
        return TenantView(self, tenant_id)

    @contextlib.asynccontextmanager
    async def as_auditor(self) -> AsyncIterator[Connection]:
        """A connection that sees one moment of what is audited, of every tenant, and can change
        nothing. Raises Unavailable."""
        async with (
            self.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute("SET LOCAL ROLE busbar_billing_auditor")
            await connection.execute(f"SET LOCAL statement_timeout = {AUDIT_TIMEOUT_MS}")
            yield connection

    async def ping(self) -> bool:
        """Whether the database answers and has our tables; kept in `reachable`."""
        try:
            async with self.connection() as connection:
                await connection.execute("SELECT FROM usage_records LIMIT 1", timeout=3)
        except Unavailable:
            return False
        if not self.reachable:
            log.info("database reached")
        self.reachable = True
        return True

    async def wait_until_reachable(self) -> None:
        """Return when the database answers; while it does not, ask again at least every second."""
        pause_s = 0.05
        while not self.reachable and not await self.ping():
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PROBE_PAUSE_MAX_S)


class TenantView:
    """Connections that see the rows of one tenant and change nothing; see Database.as_tenant."""

    def __init__(self, database: Database, tenant_id: str) -> None:
        self._database = database
        self._tenant_id = tenant_id

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """A connection, in a transaction that only reads. Raises Unavailable."""
        return self._database.as_tenant(self._tenant_id)

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """As connection(): whoever wants to write is refused by the database."""
        return self._database.as_tenant(self._tenant_id)


async def _nothing_is_left(_: object) -> None:
    """A connection goes back as it is: what we set, lock or open ends with its transaction.

    asyncpg rolls back what is open and, unless told otherwise, also sends four statements that
    undo what a session may have left. They were half of all that billing asked of the database.
    """


@contextlib.asynccontextmanager
async def open_database(dsn: str) -> AsyncIterator[Database]:
    """A database; what is still running on it when this ends has 5 s."""
    pool = await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=CONNECTIONS_MAX,
        timeout=ACQUIRE_TIMEOUT.total_seconds(),
        command_timeout=STATEMENT_TIMEOUT.total_seconds() + 5,
        server_settings={
            "application_name": "busbar-billing",
            "timezone": "UTC",
            "statement_timeout": str(int(STATEMENT_TIMEOUT.total_seconds() * 1000)),
            "idle_in_transaction_session_timeout": "30000",
        },
        reset=_nothing_is_left,
    )
    try:
        yield Database(pool)
    finally:
        try:
            await asyncio.wait_for(pool.close(), 5)
        except TimeoutError:
            pool.terminate()
