"""What people do to a tenant's money: give, refund, correct; and how credit expires."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from busbar_errors import Conflict, NotFound, Rejected

from busbar_billing.domain import ledger, promotions
from busbar_billing.domain.ledger import Transfer, TransferKind
from busbar_billing.domain.money import checked_currency, checked_given, say_amount
from busbar_billing.domain.names import checked_reference, checked_text
from busbar_billing.domain.promotions import Credit, Spending
from busbar_billing.domain.usage import UNIX_NS_MAX
from busbar_billing.usecases.tenants import PostedTransfer, Tenant

REASON_MAX = 200
CORRECTABLE = frozenset({TransferKind.TOP_UP, TransferKind.REFUND})


@dataclass(frozen=True, slots=True)
class ChargeState:
    """A posted charge and what became of it, in nanos of `currency`."""

    charge: Transfer
    currency: str
    amount_nanos: int
    voided: bool
    refunded_nanos: int
    """Net of corrected refunds."""
    credit_spent: Sequence[tuple[UUID, int]]
    """What it still has from each credit, in the order of spending."""
    credit_first_nanos: int
    """What it took from credits when it was posted."""


@dataclass(frozen=True, slots=True)
class Refunded:
    """A posted refund; `ended_credit_nanos` of it went to promotional credit that had expired or
    was withdrawn by then, and is taken back as soon as that is noticed."""

    posted: PostedTransfer
    ended_credit_nanos: int


@dataclass(frozen=True, slots=True)
class EndingCredit:
    """A credit that is to end; `withdrawn_for` None: because its time is over."""

    credit_id: UUID
    tenant_id: str
    currency: str
    withdrawn_for: str | None


class AdjustmentTransaction(Protocol):
    """One transaction on the journal and on credits, beside no posting that takes charges back."""

    async def lock_key(self, key: str) -> None:
        """Wait for whoever does something under the same idempotency key."""
        ...

    async def posted(self, key: str) -> PostedTransfer | None:
        """What was posted under an idempotency key, and whether it was undone since."""
        ...

    async def transfer(self, transfer_id: UUID) -> Transfer | None:
        """A posted transfer."""
        ...

    async def charge_of(self, request_id: UUID) -> ChargeState | None:
        """The charge of a request, kept from changing until the end."""
        ...

    async def left_on_statement(self, charge: Transfer) -> int | None:
        """What may still be given back of the statement that a charge is on, which nobody else
        changes until the end; None while it is on none, or on one without a credit note."""
        ...

    async def post(self, transfer: Transfer) -> PostedTransfer:
        """Append to the journal."""
        ...

    async def lock_available(self, tenant_id: str, currency: str) -> int:
        """What the tenant has outside of leases, kept from changing until the end."""
        ...

    async def lock_credits(self, tenant_ids: Collection[str]) -> Sequence[Credit]:
        """Credits with something left, first to expire first, kept from changing until the end."""
        ...

    async def add_credit(self, credit: Credit, currency: str, expires_unix_ns: int) -> None:
        """A credit that was given."""
        ...

    async def add_spending(self, spending: Sequence[Spending]) -> None:
        """What was spent of credits, or came back."""
        ...

    async def given_to_ended_credit(self, transfer_id: UUID) -> int:
        """What a posted transfer gave back to credits that had ended before it, in nanos."""
        ...

    async def expired_credit(self, now_unix_ns: int, after: UUID) -> EndingCredit | None:
        """The next expired or withdrawn credit that has something left."""
        ...

    async def ending_credit(self, credit_id: UUID) -> EndingCredit | None:
        """A credit; None when there is none."""
        ...

    async def add_withdrawal(self, ending: EndingCredit) -> None:
        """A credit that is withdrawn: from now on it has expired."""
        ...


class Adjustments(Protocol):
    """Where the journal is kept."""

    def adjusting(self) -> AbstractAsyncContextManager[AdjustmentTransaction]:
        """Begin a transaction."""
        ...


class Tenants(Protocol):
    """Who pays."""

    async def get(self, tenant_id: str) -> Tenant:
        """Raise NotFound when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class WantedCredit:
    """A promotional credit to give."""

    tenant_id: str
    amount_nanos: int
    currency: str
    reference: str
    expires_unix_ns: int


async def grant_credit(
    store: Adjustments,
    tenants: Tenants,
    wanted: WantedCredit,
    transfer_id: UUID,
    now_unix_ns: int,
) -> PostedTransfer:
    """Give a tenant money to spend until it expires; the same `reference` again changes nothing.

    Raises Conflict when the reference was used for another amount, or for one withdrawn since.
    """
    tenant = await tenants.get(wanted.tenant_id)
    if checked_currency(wanted.currency) != tenant.currency:
        raise Rejected(f"tenant {tenant.tenant_id} pays in {tenant.currency}")
    amount = checked_given(wanted.amount_nanos)
    given = promotions.promotional_credit(
        transfer_id,
        tenant.tenant_id,
        amount,
        tenant.currency,
        checked_reference(wanted.reference),
    )
    async with store.adjusting() as transaction:
        before = await _posted_before(transaction, given)
        if before is not None:
            return before
        if not now_unix_ns < wanted.expires_unix_ns <= UNIX_NS_MAX:
            raise Rejected("expires_at must be in the future and before the year 2100")
        posted = await transaction.post(given)
        credit = Credit(transfer_id, tenant.tenant_id, amount)
        await transaction.add_credit(credit, tenant.currency, wanted.expires_unix_ns)
    return posted


async def refund_charge(
    store: Adjustments,
    *,
    request_id: UUID,
    amount_nanos: int | None,
    reference: str,
    reason: str,
    transfer_id: UUID,
) -> Refunded:
    """Give back part of a charge, or what is left of it; never more than was charged, together
    with what credit notes gave back of its statement.

    Promotional credit that it had spent comes back after the tenant's own money,
    and is gone when the credit has expired.
    """
    reference, reason = checked_reference(reference), checked_text("reason", reason, REASON_MAX)
    name = f"req_{request_id.hex}"
    async with store.adjusting() as transaction:
        state = await transaction.charge_of(request_id)
        if state is None:
            raise NotFound(f"no charge is posted for request {name}")
        left = await _left_of(transaction, state)
        amount = left if amount_nanos is None else amount_nanos
        wanted = promotions.refund(
            transfer_id, state.charge, amount, state.currency, reference=reference, reason=reason
        )
        if state.voided:
            raise Conflict(f"the charge of {name} was taken back: nothing is left to refund")
        before = await _posted_before(transaction, wanted, any_amount=amount_nanos is None)
        if before is not None:
            return await _refunded(transaction, before)
        if not left:
            raise Rejected(f"the charge of {name} was given back in full already{_NOTED}")
        if not 0 < amount <= left:
            is_left, not_left = (say_amount(one, state.currency) for one in (left, amount))
            raise Rejected(f"of the charge of {name} {is_left} are left, not {not_left}{_NOTED}")
        posted = await transaction.post(wanted)
        promotional = promotions.credit_in_refund(
            state.amount_nanos, state.credit_first_nanos, state.refunded_nanos, amount
        )
        given = promotions.give_back(transfer_id, request_id, state.credit_spent, promotional)
        await transaction.add_spending(given)
        return await _refunded(transaction, posted)


async def _refunded(transaction: AdjustmentTransaction, posted: PostedTransfer) -> Refunded:
    transfer_id = posted.transfer.transfer_id
    return Refunded(posted, await transaction.given_to_ended_credit(transfer_id))


_NOTED = " (refunds of it and credit notes on its statement count)"


async def _left_of(transaction: AdjustmentTransaction, state: ChargeState) -> int:
    if state.voided:
        return 0
    left = state.amount_nanos - state.refunded_nanos
    of_all = await transaction.left_on_statement(state.charge)
    return left if of_all is None else min(left, of_all)


async def correct_transfer(
    store: Adjustments, *, wrong_id: UUID, reason: str, new_id: UUID
) -> PostedTransfer:
    """Undo a top-up or a refund that should not have been, if the tenant still has the money."""
    reason = checked_text("reason", reason, REASON_MAX)
    async with store.adjusting() as transaction:
        wrong = await transaction.transfer(wrong_id)
        if wrong is None:
            raise NotFound(f"there is no transfer {wrong_id}")
        if wrong.kind not in CORRECTABLE or wrong.tenant_id is None:
            raise Rejected(f"a {wrong.kind} cannot be corrected, only a top_up or a refund")
        undone = ledger.correction(new_id, wrong, reason)
        before = await _posted_before(transaction, undone)
        if before is not None:
            return before
        if wrong.request_id is not None:
            await _check_correctable(transaction, wrong.request_id)
        taken = next(one for one in undone.postings if one.account.tenant_id is not None)
        available = await transaction.lock_available(wrong.tenant_id, taken.account.currency)
        if available < -taken.amount_nanos:
            currency = taken.account.currency
            raise Conflict(
                f"tenant {wrong.tenant_id} has {say_amount(available, currency)} outside of "
                f"leases, not the {say_amount(-taken.amount_nanos, currency)} to be taken back"
            )
        return await transaction.post(undone)


async def _check_correctable(transaction: AdjustmentTransaction, request_id: UUID) -> None:
    state = await transaction.charge_of(request_id)
    if state is not None and state.credit_first_nanos:
        raise Rejected("the refund gave promotional credit back: it cannot be corrected")


async def _posted_before(
    transaction: AdjustmentTransaction, wanted: Transfer, *, any_amount: bool = False
) -> PostedTransfer | None:
    await transaction.lock_key(wanted.idempotency_key)
    before = await transaction.posted(wanted.idempotency_key)
    if before is not None and not any_amount and before.transfer.postings != wanted.postings:
        raise Conflict(
            "the reference was already used for another amount: "
            "use a new reference, or repeat the amount"
        )
    if before is not None:
        before.refuse_undone()
    return before


async def expire_credits(
    store: Adjustments, new_id: Callable[[], UUID], now_unix_ns: int, limit: int = 1_000
) -> int:
    """Take back the unspent rest of credits that ended; returns how many transfers it took.

    What is in a lease is taken when it comes back, unless it is spent by then.
    """
    taken, last = 0, UUID(int=0)
    for _ in range(limit):
        async with store.adjusting() as transaction:
            found = await transaction.expired_credit(now_unix_ns, last)
            if found is None:
                break
            last = found.credit_id
            taken += await _take_unspent(transaction, found, new_id())
    return taken


async def withdraw_credit(
    store: Adjustments, *, credit_id: UUID, reason: str, transfer_id: UUID
) -> bool:
    """Take back what is unspent of a credit that should not have been given; returns whether it
    was withdrawn before, when nothing but what came back from leases since is taken.

    What is in a lease is taken when it comes back, unless it is spent by then.
    """
    reason = checked_text("reason", reason, REASON_MAX)
    async with store.adjusting() as transaction:
        await transaction.lock_key(f"promotional_withdrawal:{credit_id}")
        ending = await transaction.ending_credit(credit_id)
        if ending is None:
            raise NotFound(f"there is no promotional credit {credit_id}")
        await transaction.lock_available(ending.tenant_id, ending.currency)
        repeated = ending.withdrawn_for is not None
        if not repeated:
            ending = replace(ending, withdrawn_for=reason)
            await transaction.add_withdrawal(ending)
        await _take_unspent(transaction, ending, transfer_id)
    return repeated


async def _take_unspent(
    transaction: AdjustmentTransaction, ending: EndingCredit, transfer_id: UUID
) -> bool:
    """Take what of a credit is neither spent nor in a lease; returns whether that was anything."""
    available = await transaction.lock_available(ending.tenant_id, ending.currency)
    unspent = await transaction.lock_credits([ending.tenant_id])
    credit = next((one for one in unspent if one.credit_id == ending.credit_id), None)
    amount = min(available, credit.unspent_nanos) if credit else 0
    if credit is None or amount <= 0:
        return False
    if ending.withdrawn_for is None:
        taken = promotions.promotional_expiry(transfer_id, credit, amount, ending.currency)
    else:
        taken = promotions.promotional_withdrawal(
            transfer_id, credit, amount, ending.currency, ending.withdrawn_for
        )
    await transaction.post(taken)
    await transaction.add_spending([Spending(transfer_id, credit.credit_id, None, amount)])
    return True
