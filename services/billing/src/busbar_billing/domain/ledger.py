"""Double entry: transfers whose postings sum to zero.

A posting's amount is added to its account. A tenant's money is what its
`tenant_available` account holds and, in leases of gateways, its `tenant_held`;
`tenant_receivable` goes negative by what it owes. `payments_clearing` goes negative
by what customers have paid in, `revenue` grows by what they have used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from busbar_billing.domain.leases import Funding, Lease
from busbar_billing.domain.rating import Rating


class AccountKind(StrEnum):
    """What an account is for. Those named tenant_… belong to one tenant, the others to us."""

    TENANT_AVAILABLE = "tenant_available"
    TENANT_HELD = "tenant_held"
    TENANT_RECEIVABLE = "tenant_receivable"
    REVENUE = "revenue"
    PROMOTIONAL_CREDIT = "promotional_credit"
    PAYMENTS_CLEARING = "payments_clearing"
    ENERGY_COST = "energy_cost"
    ENERGY_PAYABLE = "energy_payable"
    ROUNDING = "rounding"


class Account(NamedTuple):
    """An account by what it is for; `tenant_id` is None for ours, `site` set for its energy.

    A tuple, as is whatever a posting makes for each record: made in a third of the time.
    """

    kind: AccountKind
    tenant_id: str | None
    currency: str
    site: str | None = None


class Posting(NamedTuple):
    """`amount_nanos` is added to `account`; negative takes away."""

    account: Account
    amount_nanos: int


class TransferKind(StrEnum):
    """Why money moved."""

    TOP_UP = "top_up"
    PROMOTIONAL_CREDIT = "promotional_credit"
    PROMOTIONAL_EXPIRY = "promotional_expiry"
    PROMOTIONAL_WITHDRAWAL = "promotional_withdrawal"
    REFUND = "refund"
    ENERGY_COST = "energy_cost"
    CHARGE = "charge"
    VOID = "void"
    CORRECTION = "correction"
    LEASE_HOLD = "lease_hold"
    LEASE_RELEASE = "lease_release"
    RECEIVABLE_PAID = "receivable_paid"
    PAYMENT_RETURNED = "payment_returned"


class Unbalanced(ValueError):
    """Postings that do not sum to zero: a bug of whoever built them."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Money moved, once: a repeat carries the same `idempotency_key`."""

    transfer_id: UUID
    kind: TransferKind
    idempotency_key: str
    postings: tuple[Posting, ...]
    tenant_id: str | None = None
    request_id: UUID | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.postings or any(totals(self.postings).values()):
            sums = totals(self.postings)
            raise Unbalanced(f"{self.idempotency_key}: postings sum to {sums}, not to zero")


def totals(postings: Iterable[Posting]) -> dict[str, int]:
    """Sum of the postings by currency."""
    sums: dict[str, int] = {}
    for posting in postings:
        currency = posting.account.currency
        sums[currency] = sums.get(currency, 0) + posting.amount_nanos
    return sums


def balances(transfers: Iterable[Transfer]) -> dict[Account, int]:
    """What each account holds after the transfers, in whatever order they come; zeros left out."""
    held: defaultdict[Account, int] = defaultdict(int)
    for transfer in transfers:
        for posting in transfer.postings:
            held[posting.account] += posting.amount_nanos
    return {account: amount for account, amount in held.items() if amount}


def top_up(
    transfer_id: UUID, tenant_id: str, amount_nanos: int, currency: str, reference: str
) -> Transfer:
    """A tenant paid in; `reference` names the payment and makes a repeat harmless."""
    clearing = Account(AccountKind.PAYMENTS_CLEARING, None, currency)
    available = Account(AccountKind.TENANT_AVAILABLE, tenant_id, currency)
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.TOP_UP,
        idempotency_key=f"top_up:{tenant_id}:{reference}",
        postings=(Posting(clearing, -amount_nanos), Posting(available, amount_nanos)),
        tenant_id=tenant_id,
        reason=reference,
    )


def charge(
    transfer_id: UUID, request_id: UUID, tenant_id: str, rating: Rating, funding: Funding
) -> Transfer:
    """A tenant used something. What rounding to the quantum took or gave goes to `rounding`."""
    revenue = Account(AccountKind.REVENUE, None, rating.currency)
    postings = (
        *_funded(tenant_id, rating.currency, funding),
        Posting(revenue, rating.earned_nanos),
    )
    remainder = rating.charge_nanos - rating.earned_nanos
    if remainder:
        rounding = Account(AccountKind.ROUNDING, None, rating.currency)
        postings = (*postings, Posting(rounding, remainder))
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.CHARGE,
        idempotency_key=f"charge:{request_id}",
        postings=postings,
        tenant_id=tenant_id,
        request_id=request_id,
    )


def _funded(tenant_id: str, currency: str, funding: Funding) -> tuple[Posting, ...]:
    sources = (
        (AccountKind.TENANT_HELD, funding.held_nanos),
        (AccountKind.TENANT_AVAILABLE, funding.available_nanos),
        (AccountKind.TENANT_RECEIVABLE, funding.receivable_nanos),
    )
    taken = [
        Posting(Account(kind, tenant_id, currency), -amount) for kind, amount in sources if amount
    ]
    if not taken:  # a charge of nothing has its two sides, too
        return (Posting(Account(AccountKind.TENANT_AVAILABLE, tenant_id, currency), 0),)
    return tuple(taken)


def lease_hold(transfer_id: UUID, lease: Lease, amount_nanos: int) -> Transfer:
    """Money moved from a tenant's balance into a lease; `lease` is as it is afterwards."""
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.LEASE_HOLD,
        idempotency_key=f"lease_hold:{lease.lease_id}:{lease.granted_nanos}",
        postings=_into_lease(lease, amount_nanos),
        tenant_id=lease.tenant_id,
        reason=f"lease {lease.lease_id} at gateway {lease.gateway_id}",
    )


def lease_release(transfer_id: UUID, lease: Lease, amount_nanos: int) -> Transfer:
    """Money moved from a lease back into the balance; `lease` is as it is afterwards."""
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.LEASE_RELEASE,
        idempotency_key=f"lease_release:{lease.lease_id}:{lease.returned_nanos}",
        postings=_into_lease(lease, -amount_nanos),
        tenant_id=lease.tenant_id,
        reason=f"lease {lease.lease_id} at gateway {lease.gateway_id}",
    )


def _into_lease(lease: Lease, amount_nanos: int) -> tuple[Posting, Posting]:
    available = Account(AccountKind.TENANT_AVAILABLE, lease.tenant_id, lease.currency)
    held = Account(AccountKind.TENANT_HELD, lease.tenant_id, lease.currency)
    return Posting(available, -amount_nanos), Posting(held, amount_nanos)


def receivable_paid(
    transfer_id: UUID, tenant_id: str, currency: str, amount_nanos: int
) -> Transfer:
    """What a tenant owed is taken from what it has paid in since."""
    available = Account(AccountKind.TENANT_AVAILABLE, tenant_id, currency)
    receivable = Account(AccountKind.TENANT_RECEIVABLE, tenant_id, currency)
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.RECEIVABLE_PAID,
        idempotency_key=f"receivable_paid:{transfer_id}",
        postings=(Posting(available, -amount_nanos), Posting(receivable, amount_nanos)),
        tenant_id=tenant_id,
    )


def void(transfer_id: UUID, charged: Transfer, reason: str, *, lease_open: bool) -> Transfer:
    """Takes back a charge whose answer was not delivered, posting by posting.

    What came from a lease goes back into it, or into the balance when it is closed.
    """
    postings = reversed_postings(charged)
    if not lease_open:
        postings = tuple(
            Posting(line.account._replace(kind=AccountKind.TENANT_AVAILABLE), line.amount_nanos)
            if line.account.kind is AccountKind.TENANT_HELD
            else line
            for line in postings
        )
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.VOID,
        idempotency_key=f"void:{charged.request_id}",
        postings=postings,
        tenant_id=charged.tenant_id,
        request_id=charged.request_id,
        reason=reason,
    )


def correction(transfer_id: UUID, wrong: Transfer, reason: str) -> Transfer:
    """Undoes any transfer that should not have been; what should have been is posted anew."""
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.CORRECTION,
        idempotency_key=f"correction:{wrong.transfer_id}",
        postings=reversed_postings(wrong),
        tenant_id=wrong.tenant_id,
        request_id=wrong.request_id,
        reason=reason,
    )


def already_noted(transfer_id: UUID, void: Transfer, amount_nanos: int, number: str) -> Transfer:
    """Takes as much of a void back as credit notes on the statement `number` gave already."""
    taken: list[Posting] = []
    left = amount_nanos
    # The balance first, so that a debt which the void ended stays ended.
    for line in sorted(void.postings, key=lambda one: _KEPT_LAST.get(one.account.kind, 0)):
        part = min(left, line.amount_nanos) if line.account.tenant_id is not None else 0
        if part > 0:
            taken.append(Posting(line.account, -part))
            left -= part
    [currency] = {line.account.currency for line in taken}
    revenue = Account(AccountKind.REVENUE, None, currency)
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.CORRECTION,
        idempotency_key=f"correction:{void.transfer_id}",
        postings=(*taken, Posting(revenue, amount_nanos - left)),
        tenant_id=void.tenant_id,
        request_id=void.request_id,
        reason=f"a credit note on {number} gave it back already",
    )


_KEPT_LAST = {AccountKind.TENANT_RECEIVABLE: 1, AccountKind.TENANT_HELD: 2}


def reversed_postings(transfer: Transfer) -> tuple[Posting, ...]:
    """The same postings with the opposite sign."""
    return tuple(Posting(line.account, -line.amount_nanos) for line in transfer.postings)
