"""Audit what stands beside charges: measured work, its energy, and sums over months."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple, Protocol

from busbar_billing.domain.audit import work
from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.domain.audit.work import MonthRow, PriceRow, WorkNumber, WorkRow
from busbar_billing.usecases.audit_answers import Progress

WORK_PIECE = 500
MONTHS_PIECE = 20
"""A month of a tenant reads all of its records."""


@dataclass(frozen=True, slots=True)
class WorkPiece:
    """Work in the order in which it was stored, never half of what was stored together; `last`
    None: there is no more."""

    rows: Sequence[WorkRow]
    prices: Sequence[PriceRow]
    booked: Mapping[str, Mapping[str, int]]
    last: datetime | None
    after_a_gap: Sequence[WorkNumber] = ()
    """Records whose predecessor is missing, of those stored between a minute before the last piece
    ended and a minute before this one does: what comes in another order is there by then."""


class TenantMonth(NamedTuple):
    """A month of a tenant, in the order in which they are read."""

    tenant_id: str
    month: date


FIRST_MONTH = TenantMonth("", date.min)


@dataclass(frozen=True, slots=True)
class MonthsPiece:
    """Months, each as of one moment; `last` None: there are no more."""

    rows: Sequence[MonthRow]
    last: TenantMonth | None


class Work(Protocol):
    """Measured work and sums over months."""

    async def work(self, after: datetime, limit: int) -> WorkPiece:
        """About the next `limit` attempts."""
        ...

    async def months(self, after: TenantMonth, limit: int) -> MonthsPiece:
        """The next `limit` months."""
        ...


async def check_work(books: Work, report: Report, progress: Progress, since: datetime) -> None:
    """Work is joined to its charge and its energy booked; what brought nothing in is counted."""
    last: datetime | None = since
    while last is not None:
        before = report.of(Check.WORK_JOINED).rows
        last = await check_work_piece(books, last, report)
        progress(Check.WORK_JOINED, report.of(Check.WORK_JOINED).rows - before)


async def check_work_piece(books: Work, after: datetime, report: Report) -> datetime | None:
    """The next attempts; returns when the last of them was stored, None when there are no more."""
    piece = await books.work(after, WORK_PIECE)
    report.looked(len(piece.rows), Check.WORK_JOINED, Check.ENERGY_BOOKED, Check.WORK_NUMBERED)
    report.add(work.check_numbers(piece.after_a_gap))
    report.add(work.check_owners(piece.rows))
    report.add(work.check_energy(piece.rows, piece.prices, piece.booked))
    lost = work.leaked(piece.rows)
    report.leaked_attempts += lost.attempts
    report.leaked_energy_mj += lost.energy_mj
    return piece.last


async def check_months(books: Work, report: Report) -> None:
    """Sums over months are what the records add up to."""
    last: TenantMonth | None = FIRST_MONTH
    while last is not None:
        last = await check_months_piece(books, last, report)


async def check_months_piece(books: Work, after: TenantMonth, report: Report) -> TenantMonth | None:
    """The next months; returns the last of them, None when there are no more."""
    piece = await books.months(after, MONTHS_PIECE)
    report.looked(len(piece.rows), Check.MONTHS_ADD_UP)
    report.add(work.check_months(piece.rows))
    return piece.last
