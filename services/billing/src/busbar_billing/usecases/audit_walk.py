"""Audit without end: follow what is posted, and begin at zero again and again beside it.

A walk goes on from its mark in short steps, so that it can stop anywhere, be carried on
by another instance of the service, and never keeps the database or its neighbours long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.usecases.audit import (
    EARLIEST,
    LAST_ID,
    Books,
    check_balances,
    check_credits,
    check_inbox_piece,
    check_leases,
    check_payments,
    check_prices,
    check_statements,
    replay_piece,
)
from busbar_billing.usecases.audit_answers import Extent, check_origins, check_piece
from busbar_billing.usecases.audit_seals import FIRST_ID
from busbar_billing.usecases.audit_statements import recount_notes, recount_piece
from busbar_billing.usecases.audit_work import (
    FIRST_MONTH,
    TenantMonth,
    check_months_piece,
    check_work_piece,
)


@dataclass(frozen=True, slots=True)
class Mark:
    """Up to where all is checked: transfers, records of the inbox, messages of the stream that was
    created at `stream_created_at`, measured work, months and statements of tenants. None: to the
    end."""

    transfer: UUID = FIRST_ID
    inbox: UUID = FIRST_ID
    message: int = 0
    stream_created_at: datetime | None = None
    work: datetime | None = EARLIEST
    month: TenantMonth | None = FIRST_MONTH
    statement: TenantMonth | None = FIRST_MONTH


@dataclass(slots=True)
class Walk:
    """A walk and what it has added up for each account; `touched` changed since it was saved."""

    began_at: datetime
    mark: Mark = field(default_factory=Mark)
    replayed: dict[int, int] = field(default_factory=dict[int, int])
    touched: set[int] = field(default_factory=set[int])


TimeLeft = Callable[[], bool]
"""Whether to go on."""


async def follow(books: Books, walk: Walk, settled: UUID, report: Report, go_on: TimeLeft) -> bool:
    """Check what was posted since the mark, up to `settled`, and what stands beside it; returns
    whether that was all."""
    await check_prices(books.prices, report)
    done = await _replay(books, walk, settled, report, go_on)
    done = await _compare(books, walk, report, go_on) and done
    await check_leases(books.standing, report)
    if done:
        await check_balances(books.standing, walk.mark.transfer, walk.replayed, report)
    return done


async def sweep(books: Books, walk: Walk, settled: UUID, report: Report, go_on: TimeLeft) -> bool:
    """Go on from zero to `settled`, then look at everything else; returns whether that was all."""
    if not await _replay(books, walk, settled, report, go_on):
        return False
    while walk.mark.inbox < LAST_ID:
        if not go_on():
            return False
        last = await check_inbox_piece(books.journal, walk.mark.inbox, report)
        walk.mark = replace(walk.mark, inbox=last or LAST_ID)
    if not await _compare(books, walk, report, go_on):
        return False
    if not await _look_beside(books, walk, report, go_on):
        return False
    await check_origins(books.answers.inbox, report)
    await check_balances(books.standing, walk.mark.transfer, walk.replayed, report)
    await check_leases(books.standing, report)
    await check_credits(books.standing, report)
    await check_payments(books.standing, report)
    await check_statements(books.standing, report)
    await recount_notes(books.recount, report)
    return True


async def _replay(books: Books, walk: Walk, settled: UUID, report: Report, go_on: TimeLeft) -> bool:
    while walk.mark.transfer < settled:
        if not go_on():
            return False
        posted: dict[int, int] = {}
        last = await replay_piece(books.journal, walk.mark.transfer, settled, report, posted)
        for account_id, nanos in posted.items():
            walk.replayed[account_id] = walk.replayed.get(account_id, 0) + nanos
        walk.touched |= posted.keys()
        walk.mark = replace(walk.mark, transfer=last or settled)
    return True


async def _compare(books: Books, walk: Walk, report: Report, go_on: TimeLeft) -> bool:
    extent = await books.answers.stream.extent()
    walk.mark = of_this_stream(walk.mark, extent)
    while walk.mark.message < extent.posted:
        if not go_on():
            return False
        last = await check_piece(books.answers, walk.mark.message, extent, report, _unwatched)
        walk.mark = replace(walk.mark, message=last)
    return True


async def _look_beside(books: Books, walk: Walk, report: Report, go_on: TimeLeft) -> bool:
    """Check measured work, then months, then statements."""
    while (after := walk.mark.work) is not None:
        if not go_on():
            return False
        walk.mark = replace(walk.mark, work=await check_work_piece(books.work, after, report))
    while (month := walk.mark.month) is not None:
        if not go_on():
            return False
        walk.mark = replace(walk.mark, month=await check_months_piece(books.work, month, report))
    while (after_that := walk.mark.statement) is not None:
        if not go_on():
            return False
        last = await recount_piece(books.recount, after_that, report)
        walk.mark = replace(walk.mark, statement=last)
    return True


def of_this_stream(mark: Mark, extent: Extent) -> Mark:
    """The mark, at the beginning of the stream when it was made anew or has lost what was next."""
    same = mark.stream_created_at == extent.created_at
    message = max(mark.message if same else 0, extent.first - 1)
    return replace(mark, message=message, stream_created_at=extent.created_at)


def _unwatched(_doing: Check, _rows: int) -> None:
    """Nobody looks at how far a walk is."""
