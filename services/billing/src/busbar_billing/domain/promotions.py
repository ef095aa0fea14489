"""Promotional credit: money that we gave a tenant, spent before its own, gone when it expires.

It is in the tenant's balance like any other money, so that a lease needs no
colours; which charge spent it is decided when the charge is posted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from busbar_billing.domain.ledger import Account, AccountKind, Posting, Transfer, TransferKind


@dataclass(frozen=True, slots=True)
class Credit:
    """What is left of one credit, in nanos of the tenant's currency."""

    credit_id: UUID
    tenant_id: str
    unspent_nanos: int


@dataclass(frozen=True, slots=True)
class Spending:
    """`amount_nanos` of a credit went with a transfer; negative came back with it."""

    transfer_id: UUID
    credit_id: UUID
    request_id: UUID | None
    amount_nanos: int


class Charged(NamedTuple):
    """A charge that may spend credit."""

    transfer_id: UUID
    tenant_id: str
    request_id: UUID
    amount_nanos: int


def spend(unspent: Iterable[Credit], charges: Iterable[Charged]) -> list[Spending]:
    """Pay charges, one after the other, from the tenants' credits; `unspent` in the order in which
    they are spent: first to expire first. What they do not cover is the tenant's own money."""
    left: dict[str, list[tuple[UUID, int]]] = {}
    for credit in unspent:
        left.setdefault(credit.tenant_id, []).append((credit.credit_id, credit.unspent_nanos))
    spent: list[Spending] = []
    for charge in charges:
        due, own = charge.amount_nanos, left.get(charge.tenant_id, [])
        while due and own:
            credit_id, rest = own[0]
            part = min(due, rest)
            spent.append(Spending(charge.transfer_id, credit_id, charge.request_id, part))
            due -= part
            own[:1] = [(credit_id, rest - part)] if rest > part else []
    return spent


def give_back(
    transfer_id: UUID, request_id: UUID, spent: Sequence[tuple[UUID, int]], amount_nanos: int
) -> list[Spending]:
    """Return `amount_nanos` of what a charge spent, credit by credit in the opposite order."""
    given: list[Spending] = []
    for credit_id, net in reversed(spent):
        part = min(amount_nanos, net)
        if part > 0:
            given.append(Spending(transfer_id, credit_id, request_id, -part))
            amount_nanos -= part
    return given


def credit_in_refund(charged: int, spent: int, refunded_before: int, refund: int) -> int:
    """How much of a refund is promotional: the tenant's own money, spent last, comes back first.

    `spent` is what the charge took from credits at first.
    """
    own = charged - spent
    return max(0, refunded_before + refund - own) - max(0, refunded_before - own)


def promotional_credit(
    transfer_id: UUID, tenant_id: str, amount_nanos: int, currency: str, reference: str
) -> Transfer:
    """We give a tenant money; `reference` makes a repeat harmless."""
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.PROMOTIONAL_CREDIT,
        idempotency_key=f"promotional_credit:{tenant_id}:{reference}",
        postings=_given(tenant_id, amount_nanos, currency),
        tenant_id=tenant_id,
        reason=reference,
    )


def promotional_expiry(
    transfer_id: UUID, credit: Credit, amount_nanos: int, currency: str
) -> Transfer:
    """The unspent rest of a credit comes back to us."""
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.PROMOTIONAL_EXPIRY,
        idempotency_key=f"promotional_expiry:{transfer_id}",
        postings=_given(credit.tenant_id, -amount_nanos, currency),
        tenant_id=credit.tenant_id,
        reason=f"credit {credit.credit_id} expired",
    )


def promotional_withdrawal(
    transfer_id: UUID, credit: Credit, amount_nanos: int, currency: str, reason: str
) -> Transfer:
    """What is unspent of a credit that should not have been given comes back to us."""
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.PROMOTIONAL_WITHDRAWAL,
        idempotency_key=f"promotional_withdrawal:{transfer_id}",
        postings=_given(credit.tenant_id, -amount_nanos, currency),
        tenant_id=credit.tenant_id,
        reason=reason,
    )


def _given(tenant_id: str, amount_nanos: int, currency: str) -> tuple[Posting, ...]:
    ours = Account(AccountKind.PROMOTIONAL_CREDIT, None, currency)
    theirs = Account(AccountKind.TENANT_AVAILABLE, tenant_id, currency)
    return Posting(ours, -amount_nanos), Posting(theirs, amount_nanos)


def refund(
    transfer_id: UUID,
    charged: Transfer,
    amount_nanos: int,
    currency: str,
    *,
    reference: str,
    reason: str,
) -> Transfer:
    """Part or all of a charge is given back; `reference` makes a repeat harmless."""
    revenue = Account(AccountKind.REVENUE, None, currency)
    available = Account(AccountKind.TENANT_AVAILABLE, charged.tenant_id, currency)
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.REFUND,
        idempotency_key=f"refund:{charged.request_id}:{reference}",
        postings=(Posting(revenue, -amount_nanos), Posting(available, amount_nanos)),
        tenant_id=charged.tenant_id,
        request_id=charged.request_id,
        reason=reason,
    )
