"""What came back of charges that a statement tells: never more than they were."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from busbar_billing.adapters.postgres import statement_queries as sql
from busbar_billing.adapters.postgres.database import Connection
from busbar_billing.domain.statement_content import read_content
from busbar_billing.domain.statements import GivenBack, Month

ID_SKEW = timedelta(days=2)
"""How far the clock that made a transfer's id may be off the database's."""


def first_id(moment: datetime) -> UUID:
    """The smallest UUIDv7 of a moment."""
    return UUID(int=int(moment.timestamp() * 1000) << 80)


def first_id_since(ends_before: datetime | None) -> UUID:
    """Of the first transfer that a month which ended then may lack; None: of any."""
    return UUID(int=0) if ends_before is None else first_id(ends_before - ID_SKEW)


async def lock_giving_back(connection: Connection, tenant_id: str) -> None:
    """Until the transaction ends nobody else gives money of this tenant's charges back."""
    await connection.execute(sql.LOCK, f"giving_back:{tenant_id}")


async def given_back_of(connection: Connection, number: str) -> GivenBack:
    """What came back of the charges on a statement, as long as the lock is held."""
    row = await connection.fetchrow(sql.BY_NUMBER, number)
    assert row is not None
    return await _given_back(connection, row)


async def given_back_beside(connection: Connection, request_id: UUID) -> GivenBack | None:
    """The same of the statement that a request is on; None while it is on none."""
    row = await connection.fetchrow(sql.OF_CHARGE, request_id)
    return None if row is None else await _given_back(connection, row)


async def noted_statements(
    connection: Connection, request_ids: Collection[UUID]
) -> dict[UUID, str]:
    """Of these requests, those whose statement has credit notes, and its number."""
    rows = await connection.fetch(sql.NOTED_CHARGES, list(request_ids))
    return {row["request_id"]: row["number"] for row in rows}


async def _given_back(connection: Connection, row: asyncpg.Record) -> GivenBack:
    tenant_id, month = row["tenant_id"], Month(row["period_start"])
    before = await connection.fetchrow(sql.BEFORE, tenant_id, row["period_start"])
    ends_before = None if before is None else Month(before["period_start"]).ends_at
    single = await connection.fetchval(
        sql.SINGLE,
        tenant_id,
        first_id_since(ends_before),
        row["cut_at"],
        month.ends_at,
        None if before is None else before["cut_at"],
        ends_before,
    )
    statement, _, _ = read_content(json.loads(row["content"]))
    return GivenBack(
        used_nanos=statement.used_nanos,
        noted_nanos=int(await connection.fetchval(sql.CREDITED, row["number"])),
        single_nanos=int(single),
    )
