"""Statements, and the journal's facts that they are made of, as rows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any
from uuid import UUID

import asyncpg
from busbar_errors import Conflict, NotFound, Unavailable

from busbar_billing.adapters.postgres import statement_queries as sql
from busbar_billing.adapters.postgres.database import READING_MAX, Connection, Connections
from busbar_billing.adapters.postgres.giving_back import (
    ID_SKEW,
    first_id,
    first_id_since,
    given_back_of,
    lock_giving_back,
)
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.adapters.postgres.posting import lock_posting
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain.ledger import (
    Account,
    AccountKind,
    Posting,
    Transfer,
    TransferKind,
)
from busbar_billing.domain.names import is_tenant_id
from busbar_billing.domain.prices import ClassPrices, Component, Price, PriceBooks
from busbar_billing.domain.statement_content import read_content, write_content
from busbar_billing.domain.statements import (
    Charged,
    Facts,
    Month,
    Movement,
    Party,
    Statement,
    Tax,
    Used,
    checked_credit,
)
from busbar_billing.domain.warrants import statement_says, statement_subject
from busbar_billing.domain.webhooks import EventType, JsonValue, Notice
from busbar_billing.usecases.statements import Addressing, Closed, Due, Issued

_NUMBER = re.compile(r"[A-Z0-9]{1,10}-[0-9]{6,19}")


class Statements:
    """Where statements are kept."""

    def __init__(self, database: Connections, journal: Journal, prices: Prices) -> None:
        self._database = database
        self._journal = journal
        self._prices = prices

    async def find(self, tenant_id: str, month: Month) -> Issued | None:
        """The statement of a month, when it is closed."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.OF_MONTH, tenant_id, month.first_day)
        return None if row is None else _read_issued(row, repeated=True)

    async def get(self, number: str) -> Issued:
        """A statement or credit note; raise NotFound."""
        row = None
        if _NUMBER.fullmatch(number):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(sql.BY_NUMBER, number)
        if row is None:
            raise NotFound(f"there is no statement {number[:40]!r}")
        return _read_issued(row)

    async def page(self, tenant_id: str | None, limit: int, before: str | None) -> list[Issued]:
        """Statements and credit notes, the latest number first, of those below `before`."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.PAGE, tenant_id, before, limit)
        return [_read_issued(row) for row in rows]

    async def last_closed(self, tenant_id: str) -> Closed | None:
        """How far a tenant's months are closed."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(sql.LAST, tenant_id)
        if row is None:
            return None
        return Closed(Month(row["period_start"]), row["cut_at"], int(row["closing_nanos"]))

    async def due(self, ended: Month, after: str, limit: int) -> list[Due]:
        """Tenants with a month before `ended` to close, by their ids after `after`."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(sql.DUE, ended.first_day, after, limit)
        return [Due(row["tenant_id"], Month(row["month"])) for row in rows]

    async def addressing(self, tenant_id: str) -> Addressing:
        """Who issues a tenant's statements and to whom; raise NotFound when there is no tenant."""
        row = None
        if is_tenant_id(tenant_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(sql.ADDRESSING, tenant_id)
        if row is None:
            raise NotFound(f"there is no tenant {tenant_id[:80]!r}")
        return Addressing(
            issuer=Party(
                row["entity_id"],
                row["entity_name"],
                tuple(row["entity_address"]),
                row["entity_tax"],
            ),
            customer=Party(tenant_id, row["name"], tuple(row["address"]), row["tax_id"]),
            tax=Tax(row["tax_name"], row["tax_ppm"], row["tax_note"]),
            tenant_since=row["created_at"],
        )

    async def now(self) -> datetime:
        """The journal's clock."""
        async with self._database.connection() as connection:
            return await connection.fetchval("SELECT clock_timestamp()")

    async def cut(self) -> datetime:
        """A moment before which nothing can be posted any more."""
        try:
            async with self._database.connection() as connection:
                return await connection.fetchval("SELECT statement_cut()")
        except asyncpg.LockNotAvailableError as error:
            raise Unavailable("a posting takes long: try again in a minute") from error

    async def facts(
        self, tenant_id: str, month: Month, cut_at: datetime, before: Closed | None
    ) -> Facts:
        """Read from one snapshot what belongs to a month and to no statement before it."""
        books = await self._prices.all()
        wait_s = READING_MAX.total_seconds()
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(f"SET LOCAL statement_timeout = '{int(wait_s)}s'")
            facts = await read_facts(connection, books, tenant_id, Cut(month, cut_at, before))
            closing = await connection.fetchval(
                sql.CLOSING,
                tenant_id,
                _since(before),
                cut_at,
                month.ends_at,
                timeout=wait_s,
            )
        return replace(facts, journal_closing_nanos=int(closing))

    async def issue(
        self, tenant_id: str, cut_at: datetime, addressing: Addressing, statement: Statement
    ) -> Issued:
        """Number a statement and keep it; when somebody was faster, theirs."""
        content = write_content(statement, addressing.issuer, addressing.customer)
        try:
            async with self._database.transaction() as connection:
                row = await connection.fetchrow(
                    sql.ISSUE,
                    addressing.issuer.party_id,
                    tenant_id,
                    statement.month.first_day,
                    cut_at,
                    statement.closing_nanos,
                    json.dumps(content),
                )
                assert row is not None
                return await self._told(connection, row)
        except asyncpg.UniqueViolationError:
            issued = await self.find(tenant_id, statement.month)
            if issued is None:
                raise
            return issued

    async def credit(
        self, number: str, amount_nanos: int, reason: str, reference: str, transfer_id: UUID
    ) -> Issued:
        """Give money of a statement back and say so in a numbered document, both or neither.

        The same reference again changes nothing; raise Conflict when it gave back another amount,
        or when more would be given back than was charged.
        """
        corrected = await self.get(number)
        if corrected.corrects is not None:
            raise Conflict(f"{number} is a credit note: correct {corrected.corrects}")
        async with self._database.transaction() as connection:
            # Until commit, so that no other note or refund gives back the last of it, too.
            await lock_posting(connection, alone=False)
            await lock_giving_back(connection, corrected.customer.party_id)
            noted = await connection.fetchrow(sql.NOTED, number, reference)
            if noted is not None:
                issued = _read_issued(noted, repeated=True)
                if issued.credited_nanos != amount_nanos:
                    raise Conflict(f"reference {reference!r} already gave back another amount")
                return issued
            given = await given_back_of(connection, number)
            checked_credit(given, amount_nanos, corrected.statement.currency)
            await self._journal.append(
                connection,
                [_credit_transfer(corrected, amount_nanos, reason, reference, transfer_id)],
            )
            content = write_content(corrected.statement, corrected.issuer, corrected.customer)
            note = json.dumps({**content, "reason": reason})
            row = await connection.fetchrow(
                sql.NOTE, number, amount_nanos, reference, transfer_id, note
            )
            assert row is not None
            return await self._told(connection, row)

    async def _told(self, connection: Connection, row: asyncpg.Record) -> Issued:
        """A document that was numbered: vouched for, and its tenant told."""
        says = {statement_subject(row["number"]): said_by_row(row)}
        await self._journal.warrants.add(connection, says)
        issued = _read_issued(row)
        await put_notices(connection, [_notice(issued)])
        return issued


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a tenant's journal a statement holds."""

    month: Month
    cut_at: datetime
    before: Closed | None


async def read_facts(connection: Connection, books: PriceBooks, tenant_id: str, cut: Cut) -> Facts:
    """What belongs to a month and to no statement before it; its closing balance by adding up."""
    month, before = cut.month, cut.before
    wait_s = READING_MAX.total_seconds()
    arguments = (
        tenant_id,
        _since(before),
        cut.cut_at,
        month.ends_at,
        None if before is None else before.cut_at,
        None if before is None else before.month.ends_at,
        first_id(cut.cut_at + ID_SKEW),
    )
    currency = await connection.fetchval(sql.CURRENCY, tenant_id)
    moved = await connection.fetch(sql.MOVEMENTS, *arguments, timeout=wait_s)
    sums = await connection.fetch(sql.CHARGES, *arguments, month.starts_at, timeout=wait_s)
    classes = {
        (row["price_version"], row["rated_class"]): books.version(row["price_version"]).classes[
            row["rated_class"]
        ]
        for row in sums
    }
    steps = await connection.fetch(
        sql.GRADUATED, *arguments, month.starts_at, *_step_columns(classes), timeout=wait_s
    )
    opening = 0 if before is None else before.closing_nanos
    change = sum(int(row["amount_nanos"]) for row in [*moved, *sums])
    return Facts(
        month=month,
        currency=currency,
        opening_nanos=opening,
        movements=[_read_movement(row) for row in moved],
        charged=[
            Charged(row["model"], row["late"], row["requests"], int(row["amount_nanos"]))
            for row in sums
        ],
        used=[
            *[
                used
                for row in sums
                for used in _flat(row, classes[row["price_version"], row["rated_class"]])
            ],
            *[_read_step(row) for row in steps],
        ],
        journal_closing_nanos=opening + change,
    )


def said_by_row(row: asyncpg.Record) -> object:
    """All that a document says, as it is kept."""
    closing, content = int(row["closing_nanos"]), json.loads(row["content"])
    return statement_says(row["tenant_id"], row["period_start"], closing, content)


def _since(before: Closed | None) -> UUID:
    """The first transfer that can be on no statement yet."""
    return first_id_since(None if before is None else before.month.ends_at)


def _notice(issued: Issued) -> Notice:
    data: dict[str, JsonValue] = {
        "tenant_id": issued.customer.party_id,
        "number": issued.number,
        "month": str(issued.statement.month),
        "currency": issued.statement.currency,
    }
    if issued.corrects is None:
        data["closing_nanos"] = issued.statement.closing_nanos
        return Notice(issued.customer.party_id, EventType.STATEMENT_ISSUED, data)
    data |= {
        "corrects": issued.corrects,
        "amount_nanos": issued.credited_nanos,
        "reason": issued.reason,
    }
    return Notice(issued.customer.party_id, EventType.CREDIT_NOTE_ISSUED, data)


def _credit_transfer(
    corrected: Issued, amount_nanos: int, reason: str, reference: str, transfer_id: UUID
) -> Transfer:
    currency, tenant_id = corrected.statement.currency, corrected.customer.party_id
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.CORRECTION,
        idempotency_key=f"credit_note:{corrected.number}:{reference}",
        postings=(
            Posting(Account(AccountKind.REVENUE, None, currency), -amount_nanos),
            Posting(Account(AccountKind.TENANT_AVAILABLE, tenant_id, currency), amount_nanos),
        ),
        tenant_id=tenant_id,
        reason=f"credit note on {corrected.number}: {reason}",
    )


def _read_issued(row: asyncpg.Record, *, repeated: bool = False) -> Issued:
    content: dict[str, Any] = json.loads(row["content"])
    statement, issuer, customer = read_content(content)
    note = row["corrects"] is not None
    return Issued(
        number=row["number"],
        issued_at=row["issued_at"],
        issuer=issuer,
        customer=customer,
        statement=statement,
        corrects=row["corrects"],
        credited_nanos=int(row["closing_nanos"]) if note else 0,
        reason=content.get("reason", ""),
        repeated=repeated,
    )


def _read_movement(row: asyncpg.Record) -> Movement:
    return Movement(
        kind=TransferKind(row["kind"]),
        day=row["day"],
        reason=row["reason"],
        amount_nanos=int(row["amount_nanos"]),
        count=row["transfers"],
        of_payment=row["of_payment"],
    )


def _flat(row: asyncpg.Record, prices: ClassPrices) -> list[Used]:
    return [
        Used(
            model=row["model"],
            late=row["late"],
            component=component,
            quantity=_quantity(row, component, prices),
            price_nanos=price.amount_nanos,
            per_units=price.per_units,
        )
        for component, price in prices.items()
        if not price.graduated
    ]


def _quantity(row: asyncpg.Record, component: Component, prices: ClassPrices) -> int:
    """As rating's quantity_of, of many records together."""
    match component:
        case Component.INPUT_TOKEN:
            apart = row["cached_tokens"] if Component.CACHED_TOKEN in prices else 0
            return int(row["input_tokens"] - apart)
        case Component.OUTPUT_TOKEN:
            return int(row["output_tokens"])
        case Component.CACHED_TOKEN:
            return int(row["cached_tokens"])
        case Component.REQUEST:
            return int(row["requests"])
        case Component.COMPUTE_SECOND:
            return int(row["compute_us"])
        case Component.MEGABYTE:
            return int(row["bytes"])


def _read_step(row: asyncpg.Record) -> Used:
    return Used(
        model=row["model"],
        late=row["late"],
        component=Component(row["component"]),
        quantity=int(row["quantity"]),
        price_nanos=row["price_nanos"],
        per_units=row["per_units"],
    )


def _step_columns(classes: dict[tuple[int, str], ClassPrices]) -> list[list[object]]:
    """Where each step of the graduated prices begins and ends, counted as in usage records."""
    rows = [
        (version, name, component.value, *step)
        for (version, name), prices in classes.items()
        for component, price in prices.items()
        if price.graduated
        for step in _steps(component, price)
    ]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(7)]


def _steps(component: Component, price: Price) -> list[tuple[int, int | None, int, int]]:
    scale = component.units_per_quantity
    ends = [following.above_units * scale for _, following in pairwise(price.steps)]
    return [
        (step.above_units * scale, end, step.amount_nanos, step.per_units)
        for step, end in zip(price.steps, [*ends, None], strict=True)
    ]
