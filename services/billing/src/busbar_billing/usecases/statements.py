"""Close a month, and correct what was closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from busbar_errors import BusbarError, Conflict, Rejected, Unavailable

from busbar_billing.domain.statements import (
    Facts,
    Month,
    Party,
    Statement,
    Tax,
    close,
    month_of,
    next_month_to_close,
)

DUE_AT_ONCE = 100
"""Tenants whose months are closed at one cut, for which postings wait once."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A numbered document. `statement` is what it says, or what it corrects; a credit note gives
    `credited_nanos` back for `reason`. `repeated`: it was there already."""

    number: str
    issued_at: datetime
    issuer: Party
    customer: Party
    statement: Statement
    corrects: str | None = None
    credited_nanos: int = 0
    reason: str = ""
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """How far a tenant's months are closed."""

    month: Month
    cut_at: datetime
    closing_nanos: int


@dataclass(frozen=True, slots=True)
class Due:
    """A tenant that has a month to close, the earliest of them."""

    tenant_id: str
    month: Month


@dataclass(slots=True)
class Pass:
    """What one look at all tenants came to; `failed` says which are left and why."""

    issued: int = 0
    failed: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Addressing:
    """Who issues a tenant's statements, to whom, with which tax."""

    issuer: Party
    customer: Party
    tax: Tax
    tenant_since: datetime


class StatementStore(Protocol):
    """Where statements are kept, and the journal that they are made of."""

    async def find(self, tenant_id: str, month: Month) -> Issued | None:
        """The statement of a month, when it is closed."""
        ...

    async def last_closed(self, tenant_id: str) -> Closed | None:
        """The latest."""
        ...

    async def due(self, ended: Month, after: str, limit: int) -> Sequence[Due]:
        """Tenants with a month before `ended` to close, by their ids after `after`."""
        ...

    async def addressing(self, tenant_id: str) -> Addressing:
        """Raises NotFound when there is no such tenant."""
        ...

    async def now(self) -> datetime:
        """The journal's clock."""
        ...

    async def cut(self) -> datetime:
        """A moment before which nothing can be posted any more."""
        ...

    async def facts(
        self, tenant_id: str, month: Month, cut_at: datetime, before: Closed | None
    ) -> Facts:
        """What is dated before the month's end, was posted before the cut and not closed before."""
        ...

    async def issue(
        self, tenant_id: str, cut_at: datetime, addressing: Addressing, statement: Statement
    ) -> Issued:
        """Number it and keep it; returns what is there already when somebody was faster."""
        ...


class UsageBacklog(Protocol):
    """Usage that gateways wrote and billing has not posted."""

    async def require_posted(self) -> None:
        """Return when all that was written until now is posted; raise Conflict when it takes
        too long."""
        ...


async def close_month(
    store: StatementStore, backlog: UsageBacklog, tenant_id: str, month: Month
) -> Issued:
    """Issue the statement of a month that is over; again, the same one.

    Raises Conflict while the month is not over, an earlier one is not closed, or usage waits to be
    posted; Rejected for a month before there was the tenant.
    """
    addressing = await store.addressing(tenant_id)
    if (issued := await store.find(tenant_id, month)) is not None:
        return issued
    before = await store.last_closed(tenant_id)
    following = next_month_to_close(before.month if before else None, addressing.tenant_since)
    if month.first_day < following.first_day:
        raise Rejected(f"{month} is before tenant {tenant_id} was there")
    if await store.now() < month.ends_at:
        raise Conflict(f"{month} is not over: it can be closed from {month.ends_at:%Y-%m-%d} (UTC)")
    if month != following:
        raise Conflict(f"close {following} first: statements follow one another")
    await backlog.require_posted()
    cut_at = await store.cut()
    facts = await store.facts(tenant_id, month, cut_at, before)
    return await store.issue(tenant_id, cut_at, addressing, close(facts, addressing.tax))


async def close_all_due(
    store: StatementStore, backlog: UsageBacklog, over_at: datetime, go_on: Callable[[], bool]
) -> Pass:
    """Close every tenant's months that were over at `over_at`; what was closed meanwhile is left.

    A tenant whose month cannot be closed keeps nobody waiting. Raises Conflict while usage waits to
    be posted, Unavailable when a part does not answer.
    """
    done, after, ended = Pass(), "", month_of(over_at)
    while go_on() and (due := await store.due(ended, after, DUE_AT_ONCE)):
        await backlog.require_posted()
        cut_at = await store.cut()
        for one in due:
            if not go_on():
                return done
            await _close_until(store, one, ended, cut_at, done)
        after = due[-1].tenant_id
    return done


async def _close_until(
    store: StatementStore, due: Due, ended: Month, cut_at: datetime, done: Pass
) -> None:
    """Close a tenant's months before `ended`, one after another."""
    month = due.month
    try:
        while month.first_day < ended.first_day:
            # Asked for again each time: another may have closed the month, at a cut of its own.
            before = await store.last_closed(due.tenant_id)
            if before is not None and before.cut_at > cut_at:
                return  # by another, after this cut: what came between is on that statement
            if before is None or before.month.first_day < month.first_day:
                addressing = await store.addressing(due.tenant_id)
                facts = await store.facts(due.tenant_id, month, cut_at, before)
                statement = close(facts, addressing.tax)
                issued = await store.issue(due.tenant_id, cut_at, addressing, statement)
                done.issued += not issued.repeated
            month = month.following
    except Unavailable:
        raise
    except BusbarError as error:
        done.failed[due.tenant_id] = f"{month}: {error.reason}"
