"""Statements and what the journal says of them, as the auditor reads both."""

from __future__ import annotations

import json

import asyncpg
from busbar_errors import NotFound

from busbar_billing.adapters.postgres import statement_queries as sql
from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.statements import Cut, read_facts, said_by_row
from busbar_billing.domain.audit.statements import KeptNote, KeptStatement
from busbar_billing.domain.prices import PriceBooks
from busbar_billing.domain.statements import Facts, Month
from busbar_billing.domain.warrants import is_vouched, statement_subject
from busbar_billing.usecases.audit_statements import StatementsPiece
from busbar_billing.usecases.audit_work import TenantMonth
from busbar_billing.usecases.statements import Closed


class AuditedStatements:
    """Reads statements by tenant and month, and the journal between the moments that they name."""

    def __init__(self, database: Database, prices: Prices, warrant_key: bytes) -> None:
        self._database = database
        self._prices = prices
        self._warrant_key = warrant_key

    async def statements(self, after: TenantMonth, limit: int) -> StatementsPiece:
        """The next `limit` statements."""
        async with self._database.as_auditor() as connection:
            books = await self._prices.current(connection)
            rows = await connection.fetch(sql.AUDITED, after.tenant_id, after.month, limit)
            found = [(self._kept(row), await _facts(connection, books, row)) for row in rows]
        last = rows[-1] if len(rows) == limit else None
        return StatementsPiece(
            found, None if last is None else TenantMonth(last["tenant_id"], last["period_start"])
        )

    async def notes(self, after: str, limit: int) -> list[KeptNote]:
        """The next `limit` credit notes, by their numbers."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(sql.AUDITED_NOTES, after, limit)
        return [KeptNote(row["number"], self._vouched(row)) for row in rows]

    def _kept(self, row: asyncpg.Record) -> KeptStatement:
        return KeptStatement(
            number=row["number"],
            month=Month(row["period_start"]),
            closing_nanos=int(row["closing_nanos"]),
            content=json.loads(row["content"]),
            vouched=self._vouched(row),
        )

    def _vouched(self, row: asyncpg.Record) -> bool:
        subject = statement_subject(row["number"])
        return not row["to_be_vouched"] or is_vouched(
            self._warrant_key, subject, said_by_row(row), row["warrant"]
        )


async def _facts(connection: Connection, books: PriceBooks, row: asyncpg.Record) -> Facts | None:
    try:
        return await read_facts(connection, books, row["tenant_id"], _cut(row))
    except (NotFound, KeyError):  # a price that something was charged by is not in the book
        return None


def _cut(row: asyncpg.Record) -> Cut:
    before = None
    if row["before_start"] is not None:
        month, closing = Month(row["before_start"]), int(row["before_closing"])
        before = Closed(month, row["before_cut"], closing)
    return Cut(Month(row["period_start"]), row["cut_at"], before)
