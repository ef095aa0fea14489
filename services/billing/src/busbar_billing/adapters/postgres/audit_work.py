"""Measured work and sums over months as the auditor reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import asyncpg

from busbar_billing.adapters.postgres.database import AUDIT_TIMEOUT_MS, Connection, Database
from busbar_billing.adapters.postgres.prices import to_unix_ns
from busbar_billing.domain.audit.work import MonthRow, PriceRow, WorkNumber, WorkRow, check_months
from busbar_billing.domain.energy import EnergyPrice, Spent, energy_key, site_of
from busbar_billing.usecases.audit import LAST_ID
from busbar_billing.usecases.audit_seals import FIRST_ID
from busbar_billing.usecases.audit_work import MonthsPiece, TenantMonth, WorkPiece

_TIMEOUT_S = AUDIT_TIMEOUT_MS / 1000 + 5
_OUT_OF_ORDER_MAX = timedelta(minutes=1)
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_IDS_MAY_BE_OFF = timedelta(days=2)
"""Request ids are made by the gateway's clock, admission may be told by another."""
_RANDOM_BITS = 80

_UPTO = """
    SELECT max(received_at) AS last, count(*) AS rows FROM (
        SELECT received_at FROM work_measured WHERE received_at > $1 ORDER BY received_at LIMIT $2
    ) AS next
"""
_WORK = """
    SELECT
        w.*, u.tenant_id AS charged_tenant,
        (u.request_id IS NULL OR v.request_id IS NOT NULL OR u.attempt <> w.attempt) AS leaked
    FROM work_measured AS w
    LEFT JOIN usage_records AS u ON u.request_id = w.request_id
    LEFT JOIN usage_voids AS v ON v.request_id = w.request_id
    WHERE w.received_at > $1 AND w.received_at <= $2
"""
_AFTER_A_GAP = """
    SELECT w.node, w.agent_run_id, w.sequence FROM work_measured AS w
    WHERE w.received_at > $1::timestamptz - $3::interval
    AND w.received_at <= $2::timestamptz - $3::interval
    AND w.sequence > 1 AND NOT EXISTS (
        SELECT FROM work_measured AS b
        WHERE b.node = w.node AND b.agent_run_id = w.agent_run_id AND b.sequence = w.sequence - 1
    )
"""
_PRICES = "SELECT * FROM energy_prices WHERE site = ANY($1::text[])"
_BOOKED = """
    SELECT t.idempotency_key, p.currency, sum(p.amount_nanos) AS nanos
    FROM transfers AS t
    INNER JOIN postings AS p ON p.transfer_id = t.transfer_id
    INNER JOIN accounts AS a ON a.account_id = p.account_id AND a.kind = 'energy_cost'
    WHERE t.idempotency_key = ANY($1::text[])
    GROUP BY 1, 2
"""
_MONTHS = """
    SELECT tenant_id, month FROM tenant_months WHERE (tenant_id, month) > ($1, $2)
    ORDER BY tenant_id, month LIMIT $3
"""
_RECORDS_OF = """
    SELECT u.amount_nanos, u.rated_class, u.consumed FROM usage_records AS u
    WHERE u.tenant_id = $1 AND u.request_id >= $3 AND u.request_id < $4
    AND month_of(u.admitted_at) = $2 AND NOT EXISTS (
        SELECT FROM transfers AS t WHERE t.request_id = u.request_id AND t.kind = 'void'
    )
"""
_MONTH = f"""
    WITH records AS ({_RECORDS_OF})
    SELECT
        (SELECT spent_nanos FROM tenant_months WHERE tenant_id = $1 AND month = $2) AS kept,
        (SELECT coalesce(sum(amount_nanos), 0) FROM records) AS recorded,
        (SELECT count(*) FROM records) AS requests
"""  # noqa: S608 - put together from constants
_ROLLED_UP = """
    SELECT
        g.bucket_s, coalesce(sum(r.amount_nanos), 0) AS nanos,
        coalesce(sum(r.requests), 0) AS requests
    FROM (VALUES (60), (3600), (86400)) AS g (bucket_s)
    LEFT JOIN usage_rollups AS r ON r.tenant_id = $1 AND r.bucket_s = g.bucket_s
    AND r.bucket_at >= $2::date::timestamp AT TIME ZONE 'UTC'
    AND r.bucket_at < ($2::date + interval '1 month') AT TIME ZONE 'UTC'
    GROUP BY g.bucket_s
"""
_METERS = f"""
    WITH records AS ({_RECORDS_OF}), consumed AS (
        SELECT r.rated_class AS price_class, c.key AS component,
            sum((c.value ->> 'quantity')::numeric) AS quantity
        FROM records AS r CROSS JOIN jsonb_each(r.consumed) AS c
        WHERE r.consumed IS NOT NULL GROUP BY 1, 2
    ), kept AS (
        SELECT price_class, component, quantity FROM monthly_use
        WHERE tenant_id = $1 AND month = $2
    )
    SELECT price_class, component, coalesce(k.quantity, 0) AS kept, coalesce(c.quantity, 0) AS used
    FROM kept AS k FULL JOIN consumed AS c USING (price_class, component)
    WHERE coalesce(k.quantity, 0) <> coalesce(c.quantity, 0)
"""  # noqa: S608 - put together from constants


class AuditedWork:
    """Reads measured work in the order in which it was stored, and months tenant by tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def work(self, after: datetime, limit: int) -> WorkPiece:
        """About the next `limit` attempts."""
        async with self._database.as_auditor() as connection:
            upto = await connection.fetchrow(_UPTO, after, limit)
            if upto is None or upto["last"] is None:
                return WorkPiece([], [], {}, None)
            found = await connection.fetch(_WORK, after, upto["last"], timeout=_TIMEOUT_S)
            rows = [_work(row) for row in found]
            window = (max(after, _LONG_AGO), upto["last"], _OUT_OF_ORDER_MAX)
            gaps = await connection.fetch(_AFTER_A_GAP, *window, timeout=_TIMEOUT_S)
            measured = [row for row in rows if row.spent is not None]
            sites = {site_of(row.node) for row in measured}
            prices = await connection.fetch(_PRICES, list(sites)) if sites else []
            keys = [energy_key(row.node, row.agent_run_id, row.sequence) for row in measured]
            booked = await connection.fetch(_BOOKED, keys) if keys else []
        sums: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for row in booked:
            sums[row["idempotency_key"]][row["currency"]] = int(row["nanos"])
        last = upto["last"] if upto["rows"] == limit else None
        after_a_gap = [WorkNumber(**row) for row in gaps]
        return WorkPiece(rows, [_price(row) for row in prices], sums, last, after_a_gap)

    async def months(self, after: TenantMonth, limit: int) -> MonthsPiece:
        """The next `limit` months, each as of one moment."""
        async with self._database.as_auditor() as connection:
            found = await connection.fetch(_MONTHS, *after, limit)
        rows = [await self._month(TenantMonth(*row)) for row in found]
        return MonthsPiece(rows, TenantMonth(*found[-1]) if len(found) == limit else None)

    async def _month(self, of: TenantMonth) -> MonthRow:
        """What the month's ids lead to; where that does not add up, whatever the ids are: the clock
        that made them may have been off by more than is allowed for."""
        following = (of.month + timedelta(days=32)).replace(day=1)
        first, last = of.month - _IDS_MAY_BE_OFF, following + _IDS_MAY_BE_OFF
        row = await self._month_between(of, _id_on(first), _id_on(last))
        if check_months([row]):
            row = await self._month_between(of, FIRST_ID, LAST_ID)
        return row

    async def _month_between(self, of: TenantMonth, first: UUID, last: UUID) -> MonthRow:
        tenant_id, month = of
        span = (tenant_id, month, first, last)
        async with self._database.as_auditor() as connection:
            sums = await connection.fetchrow(_MONTH, *span, timeout=_TIMEOUT_S)
            rolled = await connection.fetch(_ROLLED_UP, tenant_id, month, timeout=_TIMEOUT_S)
            meters = await _meters_off(connection, span)
        assert sums is not None
        return MonthRow(
            tenant_id=tenant_id,
            month=f"{month:%Y-%m}",
            kept_nanos=int(sums["kept"] or 0),
            recorded_nanos=int(sums["recorded"]),
            recorded_requests=sums["requests"],
            rolled_up={
                one["bucket_s"]: (int(one["nanos"]), int(one["requests"])) for one in rolled
            },
            meters_off=meters,
        )


async def _meters_off(connection: Connection, span: Iterable[object]) -> list[str]:
    rows = await connection.fetch(_METERS, *span, timeout=_TIMEOUT_S)
    return [
        f"{row['component']} of {row['price_class']} is metered as {row['kept']}; its records used "
        f"{row['used']}"
        for row in rows
    ]


def _id_on(day: date) -> UUID:
    """The first UUIDv7 of a day."""
    days = (day - date(1970, 1, 1)).days
    return UUID(int=(days * 86_400_000) << _RANDOM_BITS)


def _work(row: asyncpg.Record) -> WorkRow:
    energy = row["energy_mj"]
    return WorkRow(
        node=row["node"],
        agent_run_id=row["agent_run_id"],
        sequence=row["sequence"],
        received_unix_ns=to_unix_ns(row["received_at"]),
        request_id=row["request_id"],
        tenant_id=row["tenant_id"],
        spent=None if energy is None else Spent(energy, to_unix_ns(row["ended_at"])),
        charged_tenant=row["charged_tenant"],
        leaked=row["leaked"],
    )


def _price(row: asyncpg.Record) -> PriceRow:
    price = EnergyPrice(
        row["site"], to_unix_ns(row["effective_from"]), row["currency"], row["kwh_nanos"]
    )
    return PriceRow(price, to_unix_ns(row["created_at"]))
