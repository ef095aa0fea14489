"""Charges spend promotional credit first; voids give it back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from busbar_billing.domain.ledger import Transfer, correction
from busbar_billing.domain.promotions import Charged, Credit, Spending, give_back, spend


class CreditTransaction(Protocol):
    """What a posting does to credits. Who holds credits takes no balances any more."""

    async def add_transfers(self, transfers: Sequence[Transfer]) -> None:
        """Append to the journal."""
        ...

    async def refunds_of(self, request_ids: Collection[UUID]) -> Sequence[Transfer]:
        """Refunds of these requests that nobody corrected."""
        ...

    async def lock_credits(self, tenant_ids: Collection[str]) -> Sequence[Credit]:
        """Credits with something left, first to expire first, kept from changing until the end."""
        ...

    async def credit_spent(
        self, request_ids: Collection[UUID]
    ) -> Mapping[UUID, Sequence[tuple[UUID, int]]]:
        """What the charges of these requests still have from credits, in the order of spending."""
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
    unspent = await transaction.lock_credits({one.tenant_id for one in charged})
    if unspent:
        await transaction.add_spending(spend(unspent, charged))
    if voids:
        spent = await transaction.credit_spent(voids)
        given = [
            one
            for request_id, parts in spent.items()
            for one in give_back(
                voids[request_id].transfer_id,
                request_id,
                parts,
                sum(amount for _, amount in parts),
            )
        ]
        await transaction.add_spending(given)
