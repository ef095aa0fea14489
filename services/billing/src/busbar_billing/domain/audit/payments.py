"""What is kept of payments, against the journal and against itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.domain.payments import Payment


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A payment and what the journal has of it; amounts are totals in nanos."""

    payment: Payment
    topped_up_nanos: int | None
    """What the top-up under its name gave; None: there is none."""
    returned: bool
    """Whether the journal has the transfer that returned the last of `posted_returned_nanos`."""

    @property
    def reference(self) -> str:
        """The payment's name."""
        return self.payment.reference


def check_payments(rows: Iterable[PaymentRow]) -> list[Breach]:
    """Nothing is due of any, as whatever follows from what the provider told is posted with it, and
    the journal has what is kept as posted."""
    return [
        Breach(Check.PAYMENTS_POSTED, f"payment {row.reference}", detail)
        for row in rows
        for detail in _details(row)
    ]


def _details(row: PaymentRow) -> Iterable[str]:
    kept = row.payment
    if kept.due_paid_nanos:
        yield f"is kept as of {kept.paid_nanos} nanos, {kept.posted_paid_nanos} of them posted"
    returned = min(kept.paid_nanos, kept.refunded_nanos + kept.lost_nanos)
    if kept.tenant_id and returned != kept.posted_returned_nanos:
        yield (
            f"is kept with {kept.refunded_nanos} nanos refunded and {kept.lost_nanos} lost; "
            f"returned are {kept.posted_returned_nanos}"
        )
    if kept.posted_paid_nanos and row.topped_up_nanos != kept.posted_paid_nanos:
        yield (
            f"is kept with {kept.posted_paid_nanos} nanos posted; its top-up gave "
            f"{row.topped_up_nanos}"
        )
    if kept.posted_returned_nanos and not row.returned:
        yield (
            f"is kept with {kept.posted_returned_nanos} nanos returned, which no transfer came to"
        )
