"""Credit leases, as rows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
from busbar_errors import Unavailable

from busbar_billing.adapters.postgres.budgets import budgets
from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.domain.leases import TTL_MS, Lease, Standing
from busbar_billing.domain.ledger import Transfer
from busbar_billing.domain.plans import Budget
from busbar_billing.usecases.leases import Asker

# Locks are taken in one order everywhere: leases, then balances, each by their keys.
_LOCK_LEASES = """
    SELECT * FROM leases WHERE lease_id = ANY($1::uuid[]) AND closed_at IS NULL
    ORDER BY lease_id FOR UPDATE
"""
_LOCK_OPEN = """
    SELECT * FROM leases
    WHERE gateway_id = $1 AND tenant_id = ANY($2::text[]) AND closing_at IS NULL
    ORDER BY lease_id FOR UPDATE
"""
_LOCK_SETTLED = """
    SELECT * FROM leases
    WHERE closing_at IS NOT NULL AND closed_at IS NULL AND settles_at_sequence <= $1
    ORDER BY lease_id LIMIT $2 FOR UPDATE
"""
_LOCK_BALANCES = "SELECT * FROM lock_balances($1::text[])"
_TENANTS = "SELECT tenant_id, currency FROM tenants WHERE tenant_id = ANY($1::text[])"
_HELD = """
    SELECT
        tenant_id,
        coalesce(sum(left_nanos), 0) AS held,
        coalesce(sum(left_nanos) FILTER (WHERE NOT own), 0) AS elsewhere
    FROM (
        SELECT
            tenant_id,
            granted_nanos - returned_nanos - posted_nanos AS left_nanos,
            gateway_id = $1 AND run_id = $2 AND closing_at IS NULL AS own
        FROM leases
        WHERE tenant_id = ANY($3::text[]) AND closed_at IS NULL
    ) AS outstanding
    GROUP BY tenant_id
"""
_SPEND = """
    UPDATE leases AS l
    SET posted_nanos = l.posted_nanos + spent.nanos,
    expires_at = greatest(l.expires_at, now() + $3::interval)
    FROM unnest($1::uuid[], $2::int8[]) AS spent (lease_id, nanos)
    WHERE l.lease_id = spent.lease_id
"""
_ADD = """
    INSERT INTO leases (
        lease_id, tenant_id, currency, gateway_id, run_id,
        granted_nanos, returned_nanos, posted_nanos, expires_at
    )
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[],
        $6::int8[], $7::int8[], $8::int8[], $9::timestamptz[]
    )
"""
_SAVE = """
    UPDATE leases AS l
    SET granted_nanos = now.granted, returned_nanos = now.returned,
    expires_at = greatest(l.expires_at, now.expires_at),
    closing_at = CASE WHEN now.closing THEN coalesce(l.closing_at, now()) END,
    closed_at = CASE WHEN $6 THEN now() END
    FROM unnest($1::uuid[], $2::int8[], $3::int8[], $4::timestamptz[], $5::bool[])
    AS now (lease_id, granted, returned, expires_at, closing)
    WHERE l.lease_id = now.lease_id
"""
# What is locked is being spent from, and so not abandoned.
_EXPIRE = """
    UPDATE leases SET closing_at = now()
    WHERE lease_id IN (
        SELECT lease_id FROM leases WHERE closing_at IS NULL AND expires_at < now()
        ORDER BY lease_id FOR UPDATE SKIP LOCKED
    )
"""
_UNMARKED = """
    SELECT lease_id FROM leases
    WHERE closing_at IS NOT NULL AND closed_at IS NULL AND settles_at_sequence IS NULL
    LIMIT 10000
"""
_MARK = """
    UPDATE leases SET settles_at_sequence = $2
    WHERE lease_id IN (
        SELECT lease_id FROM leases WHERE lease_id = ANY($1::uuid[]) ORDER BY lease_id FOR UPDATE
    )
"""
_TTL = timedelta(milliseconds=TTL_MS)
_ANY_TO_CLOSE = """
    SELECT EXISTS (SELECT FROM leases WHERE closing_at IS NOT NULL AND closed_at IS NULL)
"""


class Leases:
    """Where leases are kept."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal

    @contextlib.asynccontextmanager
    async def leasing(self) -> AsyncIterator[LeaseRows]:
        """Begin a transaction."""
        try:
            async with self._database.transaction() as connection:
                yield LeaseRows(connection, self._journal)
        except asyncpg.UniqueViolationError as error:
            raise Unavailable(
                "the same gateway opened the same lease at the same moment"
            ) from error

    async def expire(self) -> None:
        """Begin to close what nobody renewed."""
        async with self._database.connection() as connection:
            await connection.execute(_EXPIRE)

    async def unmarked(self) -> list[UUID]:
        """Closing leases of which it is not known yet what must be posted first."""
        async with self._database.connection() as connection:
            return [row["lease_id"] for row in await connection.fetch(_UNMARKED)]

    async def mark(self, lease_ids: Sequence[UUID], sequence: int) -> None:
        """They close once USAGE is posted up to `sequence`, its last when they were closing."""
        async with self._database.connection() as connection:
            await connection.execute(_MARK, lease_ids, sequence)

    async def any_to_close(self) -> bool:
        """Whether any lease waits for its usage to be posted."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_ANY_TO_CLOSE))


class LeaseRows:
    """One transaction."""

    def __init__(self, connection: Connection, journal: Journal) -> None:
        self._connection = connection
        self._journal = journal

    async def open_leases(self, gateway_id: str, tenant_ids: Collection[str]) -> list[Lease]:
        """This gateway's leases of these tenants that take more, of any run; locked."""
        rows = await self._connection.fetch(_LOCK_OPEN, gateway_id, list(tenant_ids))
        return _read_leases(rows)

    async def standings(self, asker: Asker, tenant_ids: Collection[str]) -> dict[str, Standing]:
        """Of those of these tenants that exist; their balances are locked."""
        connection = self._connection
        rows = await connection.fetch(_TENANTS, list(tenant_ids))
        known = {row["tenant_id"]: row["currency"] for row in rows}
        balances = await lock_balances(connection, known)
        months = await budgets(connection, known)
        held = {
            row["tenant_id"]: row
            for row in await connection.fetch(_HELD, asker.gateway_id, asker.run_id, list(known))
        }
        return {
            tenant_id: _standing(
                balances.get(tenant_id) or Standing(currency, 0),
                months.get(tenant_id),
                held.get(tenant_id),
            )
            for tenant_id, currency in known.items()
        }

    async def settled_leases(self, sequence: int, limit: int) -> list[Lease]:
        """Leases that close now that USAGE is posted up to `sequence`; locked."""
        return _read_leases(await self._connection.fetch(_LOCK_SETTLED, sequence, limit))

    async def add(self, leases: Sequence[Lease]) -> None:
        """Add opened ones."""
        if not leases:
            return
        await self._connection.execute(
            _ADD,
            [one.lease_id for one in leases],
            [one.tenant_id for one in leases],
            [one.currency for one in leases],
            [one.gateway_id for one in leases],
            [one.run_id for one in leases],
            [one.granted_nanos for one in leases],
            [one.returned_nanos for one in leases],
            [one.posted_nanos for one in leases],
            [_from_ms(one.expires_unix_ms) for one in leases],
        )

    async def save(self, leases: Sequence[Lease]) -> None:
        """Save changed ones."""
        await self._save(leases, close=False)

    async def close(self, leases: Sequence[Lease]) -> None:
        """Save, and close for good."""
        await self._save(leases, close=True)

    async def add_transfers(self, transfers: Sequence[Transfer]) -> None:
        """Append to the journal."""
        await self._journal.append(self._connection, transfers)

    async def _save(self, leases: Sequence[Lease], *, close: bool) -> None:
        if not leases:
            return
        await self._connection.execute(
            _SAVE,
            [one.lease_id for one in leases],
            [one.granted_nanos for one in leases],
            [one.returned_nanos for one in leases],
            [_from_ms(one.expires_unix_ms) for one in leases],
            [one.closing for one in leases],
            close,
        )


def _standing(balance: Standing, month: Budget | None, held: asyncpg.Record | None) -> Standing:
    left = month.left_nanos if month else None
    return replace(
        balance,
        budget_left_nanos=None if left is None else left - int(held["held"] if held else 0),
        budget_ends_unix_ms=month.ends_unix_ms if month else 0,
        suspended=bool(month and month.suspended_reason),
        held_elsewhere_nanos=int(held["elsewhere"]) if held else 0,
    )


async def lock_leases(connection: Connection, lease_ids: Collection[UUID]) -> dict[UUID, Lease]:
    """Those of these leases that are not closed, locked until the transaction ends."""
    rows = await connection.fetch(_LOCK_LEASES, list(lease_ids))
    return {lease.lease_id: lease for lease in _read_leases(rows)}


async def lock_balances(connection: Connection, tenant_ids: Collection[str]) -> dict[str, Standing]:
    """The balances of these tenants, locked until the transaction ends; none without an account."""
    rows = await connection.fetch(_LOCK_BALANCES, list(tenant_ids))
    return {
        row["tenant_id"]: Standing(
            row["currency"],
            int(row["available_nanos"]),
            owed_nanos=max(0, -int(row["receivable_nanos"])),
        )
        for row in rows
    }


async def spend_leases(connection: Connection, spent: Mapping[UUID, int]) -> None:
    """Count charges against leases; what spends is not abandoned."""
    await connection.execute(_SPEND, list(spent.keys()), list(spent.values()), _TTL)


def _read_leases(rows: Iterable[asyncpg.Record]) -> list[Lease]:
    return [
        Lease(
            lease_id=row["lease_id"],
            tenant_id=row["tenant_id"],
            currency=row["currency"],
            gateway_id=row["gateway_id"],
            run_id=row["run_id"],
            granted_nanos=row["granted_nanos"],
            returned_nanos=row["returned_nanos"],
            posted_nanos=row["posted_nanos"],
            expires_unix_ms=int(row["expires_at"].timestamp() * 1000),
            closing=row["closing_at"] is not None,
        )
        for row in rows
    ]


def _from_ms(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)
