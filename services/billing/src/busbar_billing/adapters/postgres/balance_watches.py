"""Balances against the thresholds at which tenants want to be told, as rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import asyncpg
from busbar_errors import NotFound

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.domain.balance_alerts import Level, Watched, moved, news
from busbar_billing.domain.names import is_tenant_id
from busbar_billing.domain.webhooks import EventType, JsonValue, Notice

PAGE_TENANTS = 5_000

# A tenant whose accounts nothing was ever posted to is not watched.
_WATCHED = """
    SELECT
        t.tenant_id, t.currency, sum(b.balance_nanos) AS balance_nanos,
        coalesce(w.low_nanos, $1) AS low_nanos,
        coalesce(w.level, 'fine') AS level, coalesce(w.told_nanos, 0) AS told_nanos
    FROM tenants AS t
    INNER JOIN accounts AS a ON a.tenant_id = t.tenant_id AND a.currency = t.currency
    AND a.kind IN ('tenant_available', 'tenant_held', 'tenant_receivable')
    INNER JOIN account_balances AS b USING (account_id)
    LEFT JOIN balance_watches AS w ON w.tenant_id = t.tenant_id
"""
_GROUPED = " GROUP BY t.tenant_id, t.currency, w.low_nanos, w.level, w.told_nanos"
_OF = _WATCHED + " WHERE t.tenant_id = ANY($2::text[])" + _GROUPED
_PAGE = _WATCHED + " WHERE t.tenant_id > $2" + _GROUPED + " ORDER BY t.tenant_id LIMIT $3"
_OPEN = """
    INSERT INTO balance_watches (tenant_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING
"""
_LOCK = """
    SELECT FROM balance_watches WHERE tenant_id = ANY($1::text[]) ORDER BY tenant_id FOR UPDATE
"""
_SAVE = """
    UPDATE balance_watches AS w
    SET level = now.level, told_nanos = now.told_nanos, changed_at = now()
    FROM unnest($1::text[], $2::text[], $3::numeric[]) AS now (tenant_id, level, told_nanos)
    WHERE w.tenant_id = now.tenant_id
"""
_SET = """
    INSERT INTO balance_watches (tenant_id, low_nanos) VALUES ($1, $2)
    ON CONFLICT (tenant_id) DO UPDATE SET low_nanos = excluded.low_nanos
"""
_THRESHOLD = """
    SELECT t.currency, w.low_nanos, coalesce(w.level, 'fine') AS level
    FROM tenants AS t LEFT JOIN balance_watches AS w USING (tenant_id)
    WHERE t.tenant_id = $1
"""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Below what a tenant is told of its balance, in nanos of its currency; 0: never."""

    tenant_id: str
    currency: str
    low_nanos: int
    is_default: bool
    level: Level


class BalanceWatches:
    """What tenants were told of their balances. `default_low_nanos`: for whoever set none."""

    def __init__(self, database: Database, default_low_nanos: int) -> None:
        self._database = database
        self._default = default_low_nanos

    async def threshold(self, tenant_id: str) -> Threshold:
        """A tenant's; raise NotFound when there is no such tenant."""
        row = None
        if is_tenant_id(tenant_id):
            async with self._database.as_tenant(tenant_id) as connection:
                row = await connection.fetchrow(_THRESHOLD, tenant_id)
        if row is None:
            raise NotFound(f"there is no tenant {tenant_id[:80]!r}")
        own = row["low_nanos"]
        return Threshold(
            tenant_id,
            row["currency"],
            self._default if own is None else own,
            own is None,
            Level(row["level"]),
        )

    async def set_threshold(self, tenant_id: str, low_nanos: int | None) -> None:
        """Set a tenant's, or None: the default; raise NotFound when there is no such tenant."""
        await self.threshold(tenant_id)
        async with self._database.connection() as connection:
            await connection.execute(_SET, tenant_id, low_nanos)

    async def of_tenants(self, tenant_ids: Collection[str]) -> list[Watched]:
        """These tenants, as far as they have money at all."""
        async with self._database.connection() as connection:
            return await self._read(connection, tenant_ids)

    async def page(self, after: str) -> list[Watched]:
        """Tenants by id, from the first after `after`, PAGE_TENANTS of them."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_PAGE, self._default, after, PAGE_TENANTS)
        return [_read_watched(row) for row in rows]

    async def move(self, refused_below: Mapping[str, int | None]) -> list[tuple[Watched, Level]]:
        """Bring these tenants to the level where they stand, and queue for their webhooks what is
        news; return that. The value: below which balance a request was refused, if one was.

        Several at the same moment tell each crossing once.
        """
        tenant_ids = sorted(refused_below)
        async with self._database.transaction() as connection:
            await connection.execute(_OPEN, tenant_ids)
            await connection.execute(_LOCK, tenant_ids)
            before = await self._read(connection, tenant_ids)
            after = [moved(one, refused_below[one.tenant_id]) for one in before]
            await connection.execute(
                _SAVE,
                [one.tenant_id for one in after],
                [one.level.value for one in after],
                [one.told_nanos for one in after],
            )
            told = [
                (was, level)
                for was, now in zip(before, after, strict=True)
                for level in news(was, now.level)
            ]
            await put_notices(connection, [_notice(*one) for one in told])
        return told

    async def _read(self, connection: Connection, tenant_ids: Collection[str]) -> list[Watched]:
        rows = await connection.fetch(_OF, self._default, list(tenant_ids))
        return [_read_watched(row) for row in rows]


def _notice(watched: Watched, level: Level) -> Notice:
    data: dict[str, JsonValue] = {
        "tenant_id": watched.tenant_id,
        "balance_nanos": watched.balance_nanos,
        "currency": watched.currency,
    }
    if level is Level.EXHAUSTED:
        return Notice(watched.tenant_id, EventType.BALANCE_EXHAUSTED, data)
    data["threshold_nanos"] = watched.low_nanos
    return Notice(watched.tenant_id, EventType.BALANCE_LOW, data)


def _read_watched(row: asyncpg.Record) -> Watched:
    return Watched(
        tenant_id=row["tenant_id"],
        currency=row["currency"],
        balance_nanos=int(row["balance_nanos"]),
        low_nanos=row["low_nanos"],
        level=Level(row["level"]),
        told_nanos=int(row["told_nanos"]),
    )
