"""What is kept beside the journal, against the journal: balances, leases, credits, statements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.domain.ledger import AccountKind, TransferKind


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account, what its balance says, and what was posted to it after a replay stopped."""

    account_id: int
    kind: str
    owner: str
    """The tenant, or the site, or "" for ours."""
    currency: str
    balance_nanos: int
    posted_since_nanos: int

    @property
    def name(self) -> str:
        """As people know it."""
        return f"{self.kind} of {self.owner or 'ours'} in {self.currency}"


def unlike_the_journal(
    accounts: Iterable[AccountRow], replayed: Mapping[int, int]
) -> list[AccountRow]:
    """Accounts whose balance is not what the replay and what came since say."""
    return [
        one
        for one in accounts
        if one.balance_nanos != replayed.get(one.account_id, 0) + one.posted_since_nanos
    ]


@dataclass(frozen=True, slots=True)
class Summed:
    """An account's balance and the sum of all its postings at the same moment."""

    account: AccountRow
    sum_nanos: int


def check_balances(summed: Iterable[Summed]) -> list[Breach]:
    """Each balance is the sum of the account's postings."""
    return [
        Breach(
            Check.BALANCES_REPLAYED,
            f"account {one.account.account_id}",
            f"{one.account.name} is kept as {one.account.balance_nanos} nanos; its postings sum to "
            f"{one.sum_nanos}",
        )
        for one in summed
        if one.account.balance_nanos != one.sum_nanos
    ]


def check_held(accounts: Iterable[AccountRow]) -> list[Breach]:
    """Leases never hold less than nothing."""
    return [
        Breach(
            Check.LEASES_HELD,
            f"account {one.account_id}",
            f"{one.name} is {one.balance_nanos} nanos: below zero",
        )
        for one in accounts
        if one.kind == AccountKind.TENANT_HELD and one.balance_nanos < 0
    ]


def check_totals(totals: Mapping[str, int]) -> list[Breach]:
    """All balances of a currency sum to zero."""
    return [
        Breach(Check.TRANSFERS_BALANCED, f"currency {currency}", f"balances sum to {nanos} nanos")
        for currency, nanos in sorted(totals.items())
        if nanos
    ]


@dataclass(frozen=True, slots=True)
class HoldRow:
    """What a tenant's account `tenant_held` holds and what is left of its open leases."""

    tenant_id: str
    currency: str
    held_nanos: int
    outstanding_nanos: int


def check_holds(rows: Iterable[HoldRow]) -> list[Breach]:
    """Per tenant and in total, as the total is theirs."""
    return [
        Breach(
            Check.LEASES_HELD,
            f"tenant {row.tenant_id}",
            f"holds {row.held_nanos} nanos of {row.currency} in leases; outstanding are "
            f"{row.outstanding_nanos}",
        )
        for row in rows
        if row.held_nanos != row.outstanding_nanos
    ]


@dataclass(frozen=True, slots=True)
class ClosedLease:
    """A closed lease of which something is left all the same."""

    lease_id: UUID
    left_nanos: int


def check_closed(leases: Iterable[ClosedLease]) -> list[Breach]:
    """Nothing is left of what is closed."""
    return [
        Breach(
            Check.LEASES_HELD,
            f"lease {one.lease_id}",
            f"is closed, with {one.left_nanos} nanos left in it",
        )
        for one in leases
        if one.left_nanos
    ]


@dataclass(frozen=True, slots=True)
class CreditRow:
    """A promotional credit: given, spent by what is listed, unspent as it is kept."""

    credit_id: UUID
    amount_nanos: int
    spent_nanos: int
    unspent_nanos: int | None
    """None: nothing is kept of it."""
    given_nanos: int | None
    """What the transfer that gave it moved; None: there is none."""
    ends_at: datetime | None
    """When what is unspent of it is taken; None: nothing is kept of it."""
    ends_as_given_at: datetime
    """When it was to expire, or was withdrawn before."""


def check_credits(rows: Iterable[CreditRow]) -> list[Breach]:
    """A credit is what was given, and unspent of it is what nothing spent."""
    return [
        Breach(Check.CREDITS_SPENT, f"credit {row.credit_id}", detail)
        for row in rows
        for detail in _credit_details(row)
    ]


def _credit_details(row: CreditRow) -> Iterable[str]:
    if row.given_nanos != row.amount_nanos:
        yield f"is of {row.amount_nanos} nanos; its transfer gave {row.given_nanos}"
    if row.ends_at not in {None, row.ends_as_given_at}:
        yield f"ends at {row.ends_at}; it was given, or withdrawn, to end at {row.ends_as_given_at}"
    left = row.amount_nanos - row.spent_nanos
    if row.unspent_nanos != left:
        yield f"has {row.unspent_nanos} nanos unspent as it is kept; nothing spent {left} of it"
    if left < 0:
        yield f"was spent for {-left} nanos more than it is of"


@dataclass(frozen=True, slots=True)
class SpendingRow:
    """What one transfer spent of credits, and what its kind and amount are."""

    transfer_id: UUID
    kind: str | None
    spent_nanos: int
    moved_nanos: int
    """What the transfer took from the tenant; below zero where it gave."""


_ALL_CREDIT = frozenset({TransferKind.PROMOTIONAL_EXPIRY, TransferKind.PROMOTIONAL_WITHDRAWAL})


def check_spending(rows: Iterable[SpendingRow]) -> list[Breach]:
    """No transfer spends more credit than it takes, nor gives more back than it gives."""
    found: list[Breach] = []
    for row in rows:
        if row.kind is None:
            detail = f"spent {row.spent_nanos} nanos of credit and is not in the journal"
        elif (
            abs(row.spent_nanos) > abs(row.moved_nanos)
            or row.spent_nanos * row.moved_nanos < 0
            or (row.kind in _ALL_CREDIT and row.spent_nanos != row.moved_nanos)
        ):
            detail = (
                f"is a {row.kind} that took {row.moved_nanos} nanos, {row.spent_nanos} of them "
                "from promotional credit"
            )
        else:
            continue
        found.append(Breach(Check.CREDITS_SPENT, f"transfer {row.transfer_id}", detail))
    return found


@dataclass(frozen=True, slots=True)
class NumberedRow:
    """A statement or credit note, and the sequence number before its own."""

    number: str
    entity_id: str
    sequence: int
    previous: int
    wanted_number: str
    given_nanos: int | None = None
    """What a credit note says that it gives; None for a statement."""
    moved_nanos: int | None = None
    """What its transfer gave."""


@dataclass(frozen=True, slots=True)
class GivenOut:
    """How many numbers a legal entity gave out, and the last that is there."""

    entity_id: str
    given: int
    last: int


def check_given_out(entities: Iterable[GivenOut]) -> list[Breach]:
    """The last number that was given out is there."""
    return [
        Breach(
            Check.STATEMENTS_NUMBERED,
            f"entity {one.entity_id}",
            f"has given out {one.given} numbers; the last that is kept is number {one.last}",
        )
        for one in entities
        if one.given != one.last
    ]


def check_numbers(rows: Iterable[NumberedRow]) -> list[Breach]:
    """Numbers begin at 1, leave nothing out, and say their sequence; notes moved what they say."""
    return [
        Breach(Check.STATEMENTS_NUMBERED, f"statement {row.number}", detail)
        for row in rows
        for detail in _number_details(row)
    ]


def _number_details(row: NumberedRow) -> Iterable[str]:
    if row.sequence != row.previous + 1:
        yield f"follows number {row.previous} of {row.entity_id} as number {row.sequence}"
    if row.number != row.wanted_number:
        yield f"should be called {row.wanted_number}"
    if row.given_nanos is not None and row.given_nanos != row.moved_nanos:
        yield f"says that it gives {row.given_nanos} nanos; its transfer moved {row.moved_nanos}"
