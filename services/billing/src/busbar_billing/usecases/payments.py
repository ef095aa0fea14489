"""Take what the payment provider tells: store it, and post what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from busbar_errors import Rejected

from busbar_billing.domain import ledger
from busbar_billing.domain.ledger import Transfer
from busbar_billing.domain.payments import Payment, checked_payment, payment_returned

POSTED, STORED, REPEATED = "posted", "stored", "repeated"
WAITING = "waiting"
"""For another event of the same payment: who paid it, or that it was paid at all."""
NOTHING_NEW = "nothing new"
"""All that follows from it is in the ledger already."""
ORDERLY = frozenset({POSTED, STORED, REPEATED, WAITING, NOTHING_NEW})
"""What became of an event; anything else is the reason for which it was refused."""


@dataclass(frozen=True, slots=True)
class ProviderEvent:
    """An authentic event. `told` is None when it says nothing that moves money."""

    event_id: str
    type: str
    payload: bytes
    told: Payment | None


class PaymentRows(Protocol):
    """One transaction."""

    async def is_new(self, event: ProviderEvent) -> bool:
        """Store the event; False when it was stored before."""
        ...

    async def conclude(self, event_id: str, outcome: str) -> None:
        """Say what became of the event."""
        ...

    async def payment(self, told: Payment) -> Payment:
        """What is known of the same payment, locked; a new one when nothing is."""
        ...

    async def currency_of(self, tenant_id: str) -> str | None:
        """The tenant's currency; None when there is no such tenant."""
        ...

    async def available(self, tenant_id: str) -> int:
        """The tenant's balance outside of leases, locked."""
        ...

    async def is_posted(self, idempotency_key: str) -> bool:
        """Whether the journal has a transfer under this key, which nobody else posts until the
        end."""
        ...

    async def save(self, payment: Payment, transfers: list[Transfer]) -> None:
        """Keep the payment as it is now and post the transfers."""
        ...


class Payments(Protocol):
    """Where events and payments are kept."""

    def taking(self) -> AbstractAsyncContextManager[PaymentRows]:
        """Begin a transaction."""
        ...


async def take_event(
    payments: Payments, event: ProviderEvent, transfer_ids: Callable[[], UUID]
) -> str:
    """Store an event and post what follows; return what became of it.

    A repeat changes nothing. An event that cannot be right is stored with the
    reason, for people to look at: the provider would only send it again.
    """
    async with payments.taking() as rows:
        if not await rows.is_new(event):
            return REPEATED
        try:
            outcome = STORED
            if event.told is not None:
                outcome = await _fold(rows, checked_payment(event.told), transfer_ids)
        except Rejected as error:
            outcome = error.reason
        await rows.conclude(event.event_id, outcome)
        return outcome


async def _fold(rows: PaymentRows, told: Payment, transfer_ids: Callable[[], UUID]) -> str:
    if told.tenant_id:
        currency = await rows.currency_of(told.tenant_id)
        if currency is None:
            raise Rejected(f"there is no tenant {told.tenant_id[:80]!r}")
        if currency != told.currency:
            raise Rejected(f"tenant {told.tenant_id} pays in {currency}, not {told.currency}")
    payment = (await rows.payment(told)).learn(told)
    transfers: list[Transfer] = []
    if due := payment.due_paid_nanos:
        paid = ledger.top_up(
            transfer_ids(), payment.tenant_id, due, payment.currency, payment.reference
        )
        # Before balances are locked, as whoever posts by hand does.
        await _refuse_repeated(rows, paid, payment)
        transfers.append(paid)
        payment = replace(payment, posted_paid_nanos=payment.posted_paid_nanos + due)
    if back := payment.due_returned_nanos:
        # What this payment itself has just added counts too.
        available = await rows.available(payment.tenant_id) + (due if transfers else 0)
        returned = payment_returned(transfer_ids(), payment, back, available)
        await _refuse_repeated(rows, returned, payment)
        transfers.append(returned)
        payment = replace(payment, posted_returned_nanos=payment.posted_returned_nanos + back)
    await rows.save(payment, transfers)
    if transfers:
        return POSTED
    return WAITING if payment.waits else NOTHING_NEW


async def _refuse_repeated(rows: PaymentRows, due: Transfer, payment: Payment) -> None:
    """Raise Rejected where the journal has what the payment says is still due: somebody else posted
    it under its name, or changed the payment."""
    if await rows.is_posted(due.idempotency_key):
        raise Rejected(
            f"payment {payment.reference} is not as the ledger has it: it is kept as of "
            f"{payment.paid_nanos} nanos, and {due.idempotency_key} is posted already; compare "
            f"`busbar ledger --tenant {payment.tenant_id}` with the provider's books"
        )
