"""Credit leases: how much of a tenant's balance a gateway may spend without asking.

All amounts of a lease are totals that only grow, so that asks which are
repeated, lost or out of order change nothing that was not meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

TTL_MS = 30_000
"""A lease that is neither renewed nor spent from for this long is taken for abandoned."""
SLICE_DIVISOR = 4
"""A wish gets at most this part of the balance, so that other gateways find some too."""
OPENING_DIVISOR = 100
"""A new lease gets at least this part: the gateway does not know the tenant's rate yet."""
WANT_NANOS_MAX = 10**15


class Refusal(StrEnum):
    """Why nothing more was granted; the names are those of LeaseRefusal."""

    BALANCE = "balance"
    BUDGET = "budget"
    SUSPENDED = "suspended"
    UNKNOWN_TENANT = "unknown_tenant"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Lease:
    """Amounts in nanos of the currency, in total since it was opened."""

    lease_id: UUID
    tenant_id: str
    currency: str
    gateway_id: str
    run_id: str
    granted_nanos: int = 0
    returned_nanos: int = 0
    posted_nanos: int = 0
    expires_unix_ms: int = 0
    closing: bool = False
    """It expired, or the gateway is done with it: what is left goes back when all is posted."""

    @property
    def left_nanos(self) -> int:
        """What the tenant's account `tenant_held` holds for this lease."""
        return self.granted_nanos - self.returned_nanos - self.posted_nanos


@dataclass(frozen=True, slots=True)
class Ask:
    """What a gateway asks for one tenant."""

    tenant_id: str
    lease_id: UUID | None = None
    want_nanos: int = 0
    need_nanos: int = 0
    """Somebody waits for this, and less does not help; 0 when nobody waits."""
    returned_nanos: int = 0
    closing: bool = False
    refused_below_nanos: int = 0
    """Requests were refused because the balance, wherever it is held, was less than this."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A tenant as far as granting is concerned; its balance is locked."""

    currency: str
    balance_nanos: int
    """What its account `tenant_available` holds."""
    owed_nanos: int = 0
    """What its account `tenant_receivable` is short of."""
    budget_left_nanos: int | None = None
    """Of a hard monthly budget, less what is held in leases; None when there is none."""
    budget_ends_unix_ms: int = 0
    suspended: bool = False
    held_elsewhere_nanos: int = 0
    """Left in leases of the tenant at other gateways, and in closing ones."""

    @property
    def paid_nanos(self) -> int:
        """What is taken from the balance for what is owed, before anything is granted."""
        return max(0, min(self.owed_nanos, self.balance_nanos))

    @property
    def available_nanos(self) -> int:
        """What may be granted."""
        return max(0, self.balance_nanos - self.paid_nanos)


@dataclass(frozen=True, slots=True)
class Grant:
    """What an ask led to."""

    tenant_id: str
    lease: Lease | None
    """As it is now; None when none was opened."""
    held_nanos: int = 0
    """Moved from the balance into the lease."""
    released_nanos: int = 0
    """Moved back."""
    refusal: Refusal | None = None
    opened: bool = False


def answer_ask(
    ask: Ask, lease: Lease | None, standing: Standing | None, fresh: Lease | None, now_unix_ms: int
) -> Grant:
    """Decide on one ask.

    `lease` is the open one of this gateway, tenant and run, whatever the ask
    names; `fresh` an empty one that may be opened; `standing` None when there is
    no such tenant.
    """
    if lease is None and (ask.lease_id is not None or ask.closing):
        return Grant(ask.tenant_id, None, refusal=Refusal.CLOSED)
    if standing is None or fresh is None:
        return Grant(ask.tenant_id, None, refusal=Refusal.UNKNOWN_TENANT)
    if ask.lease_id is not None and lease is not None and ask.lease_id != lease.lease_id:
        return Grant(ask.tenant_id, None, refusal=Refusal.CLOSED)
    now = lease or fresh
    named = ask.lease_id is not None
    released = _give_back(now, ask.returned_nanos) if named else 0
    now = replace(now, returned_nanos=now.returned_nanos + released)
    if ask.closing:
        return Grant(ask.tenant_id, replace(now, closing=True), released_nanos=released)
    held, refusal = _slice(ask, standing, released, now.left_nanos)
    if lease is None and not held:
        return Grant(ask.tenant_id, None, refusal=refusal)
    now = replace(now, granted_nanos=now.granted_nanos + held, expires_unix_ms=now_unix_ms + TTL_MS)
    return Grant(ask.tenant_id, now, held, released, refusal, opened=lease is None)


def _give_back(lease: Lease, returned_nanos: int) -> int:
    return max(0, min(returned_nanos - lease.returned_nanos, lease.left_nanos))


def _slice(
    ask: Ask, standing: Standing, released: int, left_nanos: int
) -> tuple[int, Refusal | None]:
    """How much to move into the lease, of which there is so much left, and why not more."""
    need = max(0, ask.need_nanos)
    want = min(max(need, ask.want_nanos), WANT_NANOS_MAX)
    if not want:
        return 0, None
    if standing.suspended:
        return 0, Refusal.SUSPENDED
    free, scarce = standing.available_nanos, Refusal.BALANCE
    if standing.budget_left_nanos is not None and standing.budget_left_nanos < free:
        free, scarce = standing.budget_left_nanos, Refusal.BUDGET
    free = max(0, free + released)
    if free < need:
        return 0, scarce
    if ask.lease_id is None:
        want = max(want, free // OPENING_DIVISOR)
    held = max(need, min(want, free // SLICE_DIVISOR))
    refusal = None if held or want <= free else scarce
    if held < want and not need and held * SLICE_DIVISOR < left_nanos:
        return 0, refusal  # a scarce balance would be lent in ever smaller pieces, each a transfer
    return held, refusal


class Funding(NamedTuple):
    """Where the money for a charge comes from."""

    held_nanos: int
    available_nanos: int
    receivable_nanos: int


class Due(NamedTuple):
    """A charge to be funded."""

    tenant_id: str
    lease_id: UUID | None
    amount_nanos: int


def fund(
    dues: Sequence[Due], leases: Mapping[UUID, Lease], available: Mapping[str, int]
) -> list[Funding]:
    """Fund each charge from its lease, then from the balance, and owe the rest."""
    left = {lease_id: lease.left_nanos for lease_id, lease in leases.items()}
    free = dict(available)
    fundings: list[Funding] = []
    for due in dues:
        held = _take(due, leases, left)
        rest = due.amount_nanos - held
        if not rest:
            fundings.append(Funding(held, 0, 0))
            continue
        from_balance = max(0, min(rest, free.get(due.tenant_id, 0)))
        if from_balance:
            free[due.tenant_id] -= from_balance
        fundings.append(Funding(held, from_balance, rest - from_balance))
    return fundings


def _take(due: Due, leases: Mapping[UUID, Lease], left: dict[UUID, int]) -> int:
    """Take what the lease has for this charge; a lease of another tenant has nothing for it."""
    if due.lease_id is None:
        return 0
    lease = leases.get(due.lease_id)
    if lease is None or lease.tenant_id != due.tenant_id:
        return 0
    held = min(due.amount_nanos, left[due.lease_id])
    left[due.lease_id] -= held
    return held
