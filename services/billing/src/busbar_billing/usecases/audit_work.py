"""Audit what stands beside charges: measured work, its energy, and sums over months."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from busbar_billing.domain.audit import work
from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.domain.audit.work import MonthRow, PriceRow, WorkRow
from busbar_billing.usecases.audit_answers import Progress

WORK_PIECE = 500


@dataclass(frozen=True, slots=True)
class WorkPiece:
    """Work in the order in which it was stored, never half of what was stored together; `last`
    None: there is no more."""

    rows: Sequence[WorkRow]
    prices: Sequence[PriceRow]
    booked: Mapping[str, Mapping[str, int]]
    last: datetime | None


class Work(Protocol):
    """Measured work and sums over months."""

    async def work(self, after: datetime, limit: int) -> WorkPiece:
        """About the next `limit` attempts."""
        ...

    def months(self) -> AsyncIterator[Sequence[MonthRow]]:
        """Every month of every tenant, each as of one moment."""
        ...


async def check_work(books: Work, report: Report, progress: Progress, since: datetime) -> None:
    """Work is joined to its charge and its energy booked; what brought nothing in is counted."""
    last: datetime | None = since
    while last is not None:
        piece = await books.work(last, WORK_PIECE)
        report.looked(len(piece.rows), Check.WORK_JOINED, Check.ENERGY_BOOKED)
        report.add(work.check_owners(piece.rows))
        report.add(work.check_energy(piece.rows, piece.prices, piece.booked))
        lost = work.leaked(piece.rows)
        report.leaked_attempts += lost.attempts
        report.leaked_energy_mj += lost.energy_mj
        progress(Check.WORK_JOINED, len(piece.rows))
        last = piece.last


async def check_months(books: Work, report: Report) -> None:
    """Sums over months are what the records add up to."""
    async for rows in books.months():
        report.looked(len(rows), Check.MONTHS_ADD_UP)
        report.add(work.check_months(rows))
