"""Payments as their provider tells of them: in any order, any number of times.

What is told is folded into a payment by taking the larger of each total, which
is the same whatever order the facts come in and however often; what follows for
the ledger is the difference to what was posted already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from busbar_errors import Rejected

from busbar_billing.domain.ledger import Account, AccountKind, Posting, Transfer, TransferKind
from busbar_billing.domain.money import TOP_UP_NANOS_MAX, checked_currency
from busbar_billing.domain.names import checked_text

NANOS = 9
REFERENCE_CHARACTERS_MAX = 255
_ZERO_DECIMAL = frozenset(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "JPY",
        "KMF",
        "KRW",
        "MGA",
        "PYG",
        "RWF",
        "UGX",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ]
)
_THREE_DECIMAL = frozenset({"BHD", "JOD", "KWD", "OMR", "TND"})
"""Minor units: https://docs.stripe.com/currencies#minor-units"""


def nanos_of_minor(amount_minor: int, currency: str) -> int:
    """Return an amount in a currency's minor units (cents) as nanos."""
    decimals = 0 if currency in _ZERO_DECIMAL else 3 if currency in _THREE_DECIMAL else 2
    return int(amount_minor * 10 ** (NANOS - decimals))


def minor_of_nanos(amount_nanos: int, currency: str) -> int:
    """Return nanos as minor units; raise Rejected when they are not whole ones."""
    one = nanos_of_minor(1, currency)
    if amount_nanos % one:
        raise Rejected(f"{amount_nanos} nanos are no whole number of the smallest {currency} coin")
    return amount_nanos // one


@dataclass(frozen=True, slots=True)
class Payment:
    """One payment: what is known of it, and how much of that is in the ledger.

    All amounts are totals in nanos. `tenant_id` is "" until somebody said whose it is.
    """

    reference: str
    currency: str
    tenant_id: str = ""
    paid_nanos: int = 0
    refunded_nanos: int = 0
    lost_nanos: int = 0
    """Taken back by the payer's bank."""
    posted_paid_nanos: int = 0
    posted_returned_nanos: int = 0

    def learn(self, told: Payment) -> Payment:
        """This payment after one more fact; raise Rejected for facts that contradict it."""
        if told.currency != self.currency:
            raise Rejected(f"payment {self.reference} is in {self.currency}, not {told.currency}")
        if self.tenant_id and told.tenant_id and told.tenant_id != self.tenant_id:
            raise Rejected(f"payment {self.reference} is another tenant's")
        if self.paid_nanos and told.paid_nanos and told.paid_nanos != self.paid_nanos:
            raise Rejected(f"payment {self.reference} was of another amount")
        return replace(
            self,
            tenant_id=self.tenant_id or told.tenant_id,
            paid_nanos=max(self.paid_nanos, told.paid_nanos),
            refunded_nanos=max(self.refunded_nanos, told.refunded_nanos),
            lost_nanos=max(self.lost_nanos, told.lost_nanos),
        )

    @property
    def waits(self) -> bool:
        """Whether another event must come before anything can be posted: who paid, or what."""
        return not (self.tenant_id and self.paid_nanos)

    @property
    def due_paid_nanos(self) -> int:
        """What is still to be added to the tenant's balance."""
        return self.paid_nanos - self.posted_paid_nanos if self.tenant_id else 0

    @property
    def due_returned_nanos(self) -> int:
        """What is still to be taken from it; nothing before it was paid, and never more."""
        if not self.tenant_id:
            return 0
        returned = min(self.paid_nanos, self.refunded_nanos + self.lost_nanos)
        return max(0, returned - self.posted_returned_nanos)


def checked_payment(told: Payment) -> Payment:
    """Return a fact whose amounts, currency and name can be; raise Rejected otherwise."""
    for amount in (told.paid_nanos, told.refunded_nanos, told.lost_nanos):
        if not 0 <= amount <= TOP_UP_NANOS_MAX:
            raise Rejected(f"{amount} nanos: a payment is of 0 to {TOP_UP_NANOS_MAX}")
    checked_currency(told.currency)
    checked_text("the payment's id", told.reference, REFERENCE_CHARACTERS_MAX)
    return told


def payment_returned(
    transfer_id: UUID, payment: Payment, amount_nanos: int, available_nanos: int
) -> Transfer:
    """A payment went back to the payer: from the balance as far as that goes, else it is owed."""
    taken = max(0, min(amount_nanos, available_nanos))
    parts = (
        (AccountKind.TENANT_AVAILABLE, payment.tenant_id, -taken),
        (AccountKind.TENANT_RECEIVABLE, payment.tenant_id, taken - amount_nanos),
        (AccountKind.PAYMENTS_CLEARING, None, amount_nanos),
    )
    total = payment.posted_returned_nanos + amount_nanos
    return Transfer(
        transfer_id=transfer_id,
        kind=TransferKind.PAYMENT_RETURNED,
        idempotency_key=f"payment_returned:{payment.reference}:{total}",
        postings=tuple(
            Posting(Account(kind, owner, payment.currency), amount)
            for kind, owner, amount in parts
            if amount
        ),
        tenant_id=payment.tenant_id,
        reason=payment.reference,
    )
