"""Close a month, and correct what was closed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from busbar_errors import Conflict, Rejected

from busbar_billing.domain.statements import (
    Facts,
    Month,
    Party,
    Statement,
    Tax,
    close,
    next_month_to_close,
)


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
