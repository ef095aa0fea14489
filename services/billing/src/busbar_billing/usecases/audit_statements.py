"""Audit statements: count each of them again from the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.domain.audit.statements import (
    KeptNote,
    KeptStatement,
    check_notes,
    check_statement,
)
from busbar_billing.domain.statements import Facts
from busbar_billing.usecases.audit_work import FIRST_MONTH, TenantMonth

STATEMENTS_PIECE = 10
NOTES_PIECE = 100


@dataclass(frozen=True, slots=True)
class StatementsPiece:
    """Statements beside what the journal says of them, None where it names prices that are gone;
    `last` None: there are no more."""

    rows: Sequence[tuple[KeptStatement, Facts | None]]
    last: TenantMonth | None


class Recount(Protocol):
    """Statements, and the journal that they are made of."""

    async def statements(self, after: TenantMonth, limit: int) -> StatementsPiece:
        """The next `limit` statements."""
        ...

    async def notes(self, after: str, limit: int) -> list[KeptNote]:
        """The next `limit` credit notes, by their numbers."""
        ...


async def recount_statements(books: Recount, report: Report) -> None:
    """Every statement is what the journal comes to, every credit note what was issued."""
    last: TenantMonth | None = FIRST_MONTH
    while last is not None:
        last = await recount_piece(books, last, report)
    await recount_notes(books, report)


async def recount_piece(books: Recount, after: TenantMonth, report: Report) -> TenantMonth | None:
    """The next statements; returns the last of them, None when there are no more."""
    piece = await books.statements(after, STATEMENTS_PIECE)
    report.looked(len(piece.rows), Check.STATEMENTS_RECOUNTED)
    for kept, facts in piece.rows:
        report.add(check_statement(kept, facts))
    return piece.last


async def recount_notes(books: Recount, report: Report) -> None:
    """Every credit note is what was issued."""
    after = ""
    while notes := await books.notes(after, NOTES_PIECE):
        report.looked(len(notes), Check.STATEMENTS_RECOUNTED)
        report.add(check_notes(notes))
        after = notes[-1].number
