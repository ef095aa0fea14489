"""What was used of each month, as rows, and what a record added to it, as a column."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from uuid import UUID

from busbar_billing.adapters.postgres.database import Connection
from busbar_billing.domain.metering import Meter
from busbar_billing.domain.prices import Component
from busbar_billing.usecases.post_usage import RatedRecord

_OPEN = """
    INSERT INTO monthly_use (tenant_id, month, price_class, component)
    SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::text[])
    ON CONFLICT DO NOTHING
"""
_LOCK = """
    SELECT * FROM monthly_use
    WHERE (tenant_id, month, price_class, component) IN (
        SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::text[])
    )
    ORDER BY tenant_id, month, price_class, component -- one order for everybody: no deadlocks
    FOR UPDATE
"""
_ADD = """
    UPDATE monthly_use AS m SET quantity = m.quantity + added.quantity
    FROM unnest($1::text[], $2::date[], $3::text[], $4::text[], $5::numeric[])
    AS added (tenant_id, month, price_class, component, quantity)
    WHERE (m.tenant_id, m.month, m.price_class, m.component)
    = (added.tenant_id, added.month, added.price_class, added.component)
"""
_GIVE_BACK = """
    UPDATE monthly_use AS m SET quantity = m.quantity - back.quantity
    FROM (
        SELECT
            u.tenant_id, u.rated_class, c.key AS component,
            date_trunc('month', u.admitted_at AT TIME ZONE 'UTC')::date AS month,
            sum((c.value ->> 'quantity')::numeric) AS quantity
        FROM usage_records AS u
        CROSS JOIN jsonb_each(u.consumed) AS c
        WHERE u.request_id = ANY($1::uuid[]) AND u.consumed IS NOT NULL
        GROUP BY 1, 2, 3, 4
    ) AS back
    WHERE (m.tenant_id, m.month, m.price_class, m.component)
    = (back.tenant_id, back.month, back.rated_class, back.component)
"""


async def lock_used(connection: Connection, meters: Collection[Meter]) -> dict[Meter, int]:
    """What was used before, held until the caller's transaction ends."""
    columns = _columns(sorted(meters))
    await connection.execute(_OPEN, *columns)
    return {
        Meter(row["tenant_id"], row["month"], row["price_class"], Component(row["component"])): int(
            row["quantity"]
        )
        for row in await connection.fetch(_LOCK, *columns)
    }


async def add_used(connection: Connection, consumed: Mapping[Meter, int]) -> None:
    """Add to what was used; the meters are locked."""
    meters = sorted(consumed)
    quantities = [consumed[meter] for meter in meters]
    await connection.execute(_ADD, *_columns(meters), quantities)


async def give_back_used(connection: Connection, request_ids: Collection[UUID]) -> None:
    """Take what these records had added out of what was used."""
    await connection.execute(_GIVE_BACK, list(request_ids))


def consumed_column(rated: RatedRecord) -> str | None:
    """What rating it again needs to know, as JSON; None where prices are flat."""
    if not rated.consumed:
        return None
    before = rated.rating.before
    return json.dumps(
        {
            meter.component.value: {"before": before[meter.component], "quantity": quantity}
            for meter, quantity in rated.consumed.items()
        }
    )


def read_before(column: str | None) -> dict[Component, int]:
    """What was used before a record, from its column."""
    if column is None:
        return {}
    return {Component(name): used["before"] for name, used in json.loads(column).items()}


def _columns(meters: Collection[Meter]) -> tuple[list[object], ...]:
    return (
        [meter.tenant_id for meter in meters],
        [meter.month for meter in meters],
        [meter.price_class for meter in meters],
        [meter.component.value for meter in meters],
    )
