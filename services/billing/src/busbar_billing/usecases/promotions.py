"""Charges spend promotional credit first; voids give it back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from busbar_billing.domain.ledger import Transfer, already_noted, correction
from busbar_billing.domain.promotions import Charged, Credit, Spending, give_back, spend
from busbar_billing.domain.statements import GivenBack


class CreditTransaction(Protocol):
    """What a posting does to credits. Who holds credits takes no balances any more."""

    async def add_transfers(self, transfers: Sequence[Transfer]) -> None:
        """Append to the journal."""
        ...

    async def refunds_of(self, request_ids: Collection[UUID]) -> Sequence[Transfer]:
        """Refunds of these requests that nobody corrected."""
        ...

    async def noted(self, request_ids: Collection[UUID]) -> Mapping[UUID, str]:
        """Of these requests, those whose statement has credit notes, and its number."""
        ...

    async def given_back(self, number: str) -> GivenBack:
        """What came back of the charges on a statement; nobody adds to it until the end."""
        ...

    async def lock_credits(self, tenant_ids: Collection[str]) -> Sequence[Credit]:
        """Credits with something left, first to expire first, kept from changing until the end."""
        ...

    async def credit_spent(
        self, request_ids: Collection[UUID]
    ) -> Mapping[UUID, Sequence[tuple[UUID, int]]]:
        """What the charges of these requests still have from credits, in the order of spending."""
        ...

    async def credit_returned(self, request_ids: Collection[UUID]) -> Mapping[UUID, int]:
        """What came back already of the credit that the charges of these requests spent."""
        ...

    async def add_spending(self, spending: Sequence[Spending]) -> None:
        """What was spent of credits, or came back."""
        ...


async def settle_credit(
    transaction: CreditTransaction,
    charged: Sequence[Charged],
    voided: Sequence[Transfer],
    new_id: Callable[[], UUID],
) -> None:
    """Let charges spend credit, then let voids undo refunds and give credit back."""
    voids = {one.request_id: one for one in voided if one.request_id is not None}
    if voids:  # taken back in whole: what was refunded of it before must not come twice
        refunds = await transaction.refunds_of(voids)
        undone = [correction(new_id(), one, "the charge was taken back") for one in refunds]
        await transaction.add_transfers(undone)
    kept = await _keep_noted(transaction, voids, new_id)
    unspent = await transaction.lock_credits({one.tenant_id for one in charged})
    if unspent:
        await transaction.add_spending(spend(unspent, charged))
    if voids:
        await _give_credit_back(transaction, voids, kept)


async def _give_credit_back(
    transaction: CreditTransaction, voids: Mapping[UUID, Transfer], kept: Mapping[UUID, int]
) -> None:
    """All of it, but no more than is left of a void of which a credit note gave a part: the
    tenant's own money comes back first, and the note gave that."""
    spent = await transaction.credit_spent(voids)
    returned = await transaction.credit_returned(kept) if kept else {}
    given: list[Spending] = []
    for request_id, parts in spent.items():
        void, amount = voids[request_id], sum(nanos for _, nanos in parts)
        if request_id in kept:
            left = _given_by(void) - kept[request_id]
            amount = max(0, min(amount, left - returned.get(request_id, 0)))
        given += give_back(void.transfer_id, request_id, parts, amount)
    await transaction.add_spending(given)


def _given_by(void: Transfer) -> int:
    return sum(line.amount_nanos for line in void.postings if line.account.tenant_id)


async def _keep_noted(
    transaction: CreditTransaction, voids: Mapping[UUID, Transfer], new_id: Callable[[], UUID]
) -> dict[UUID, int]:
    """Take back of each void what a credit note gave already; returns how much, by request."""
    kept: dict[UUID, int] = {}
    for request_id, number in (await transaction.noted(voids)).items() if voids else ():
        void = voids[request_id]
        amount = min(_given_by(void), (await transaction.given_back(number)).beyond_nanos)
        if amount:
            await transaction.add_transfers([already_noted(new_id(), void, amount, number)])
            kept[request_id] = amount
    return kept
