"""Post usage: each billable record is charged once, each void takes its charge back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from uuid import UUID

from busbar_errors import Rejected

from busbar_billing.domain.leases import Due, Funding, Lease, fund
from busbar_billing.domain.ledger import AccountKind, Transfer, charge, void
from busbar_billing.domain.metering import Meter, consumed_by, meters_of
from busbar_billing.domain.prices import PriceBook, PriceBooks
from busbar_billing.domain.promotions import Charged
from busbar_billing.domain.rating import Rating, rate
from busbar_billing.domain.usage import (
    UsageRecord,
    UsageVoid,
    check_billable,
    first_of_each,
    unlike,
)
from busbar_billing.usecases.promotions import CreditTransaction, settle_credit

_NOTHING: Mapping[Meter, int] = {}


class RatedRecord(NamedTuple):
    """A record, what it costs, and the transfer that will say so."""

    record: UsageRecord
    rating: Rating
    transfer_id: UUID
    consumed: Mapping[Meter, int]
    """What it added to the month's quantities that decide the price of later records."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that can never be billed, and why."""

    record: UsageRecord
    reason: str


@dataclass(frozen=True, slots=True)
class Voided:
    """A record that is in the inbox, and so is a void of it."""

    request_id: UUID
    tenant_id: str
    reason: str
    lease_id: UUID | None


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Charges of a tenant that the leases they name did not cover, in nanos of the currency."""

    tenant_id: str
    currency: str
    from_available_nanos: int
    receivable_nanos: int


@dataclass(frozen=True, slots=True)
class PostingReport:
    """What a posting did; repeats are counted and otherwise nothing."""

    charged: Sequence[RatedRecord] = field(default_factory=list[RatedRecord])
    refused: Sequence[Refused] = field(default_factory=list[Refused])
    conflicting: Sequence[Refused] = field(default_factory=list[Refused])
    """Records of requests of which there is one already, and with other content."""
    voided: Sequence[Transfer] = field(default_factory=list[Transfer])
    duplicates: int = 0
    uncovered: Sequence[Uncovered] = field(default_factory=list[Uncovered])


class PostingTransaction(CreditTransaction, Protocol):
    """One database transaction: everything in it becomes visible together or not at all."""

    async def price_books(self) -> PriceBooks:
        """Every version."""
        ...

    async def tenant_currencies(self, tenant_ids: Collection[str]) -> Mapping[str, str]:
        """Currency of each tenant that exists."""
        ...

    async def lock_used(self, meters: Collection[Meter]) -> dict[Meter, int]:
        """What was used before; nobody else reads or changes it until this transaction ends."""
        ...

    async def add_used(self, consumed: Mapping[Meter, int]) -> None:
        """Add to what was used; the meters are locked."""
        ...

    async def give_back_used(self, request_ids: Collection[UUID]) -> None:
        """Take what these records had added out of what was used."""
        ...

    async def posted(self, request_ids: Collection[UUID]) -> Mapping[UUID, UsageRecord]:
        """What the inbox has of these requests."""
        ...

    async def add_records(self, rated: Sequence[RatedRecord]) -> set[UUID]:
        """Put records into the inbox; returns the request ids that were not there yet."""
        ...

    async def add_voids(self, voids: Sequence[UsageVoid]) -> set[UUID]:
        """Put voids into the inbox; returns the request ids that had none yet."""
        ...

    async def add_transfers(self, transfers: Sequence[Transfer]) -> None:
        """Append to the journal."""
        ...

    async def leases(self, lease_ids: Collection[UUID]) -> Mapping[UUID, Lease]:
        """Those of these leases that are not closed, kept from changing until the end.

        Whoever locks leases and balances locks the leases first, all at once.
        """
        ...

    async def available(self, tenant_ids: Collection[str]) -> Mapping[str, int]:
        """The balances of these tenants outside of leases, kept from shrinking until the end."""
        ...

    async def spend(self, spent: Mapping[UUID, int]) -> None:
        """Count charges against leases, or less than nothing for voids; renews them."""
        ...

    async def voided(self, request_ids: Collection[UUID]) -> Sequence[Voided]:
        """Of these requests, those of which both a record and a void are there."""
        ...

    async def charges_of(self, request_ids: Collection[UUID]) -> Sequence[Transfer]:
        """The charges of these requests."""
        ...


class UsageStore(Protocol):
    """Where usage and the journal are kept."""

    def posting(self, *, with_voids: bool) -> AbstractAsyncContextManager[PostingTransaction]:
        """Begin a transaction. One with voids runs beside no other, so that a record and its void
        posted at the same moment cannot miss each other."""
        ...


async def post_usage(
    store: UsageStore,
    records: Sequence[UsageRecord],
    voids: Sequence[UsageVoid],
    new_id: Callable[[], UUID],
) -> PostingReport:
    """Post a batch in one transaction; repeats, in any order and number, change nothing.

    A record and its void leave a charge and its reversal, whichever came first.
    Raises Unavailable when the database cannot be reached; then nothing was posted.
    """
    async with store.posting(with_voids=bool(voids)) as transaction:
        # 1. Rate.
        books = await transaction.price_books()
        currencies = await transaction.tenant_currencies({record.tenant_id for record in records})
        firsts = first_of_each(records)
        meters = _meters(firsts, books, currencies) if books.any_graduated else set[Meter]()
        used: dict[Meter, int] = {}
        if meters:
            used = await transaction.lock_used(meters)
            there = await transaction.posted([one.request_id for one in firsts])
            firsts = [one for one in firsts if one.request_id not in there]
        rated, refused = rate_records(firsts, books, currencies, new_id, used)
        # 2. Keep out what is there already.
        fresh = await transaction.add_records(rated)
        fresh_voids = await transaction.add_voids(voids) if voids else set[UUID]()
        met = await transaction.voided(fresh | fresh_voids)
        # 3. Charge: the lease that served it, else the balance, else the tenant owes it.
        charged = [one for one in rated if one.record.request_id in fresh]
        conflicting = await _conflicting(transaction, records, charged, refused)
        leases = await _lock_leases(transaction, charged, met)
        fundings = await _fund(transaction, charged, met, leases)
        await transaction.add_transfers(
            [charge_of(one, money) for one, money in zip(charged, fundings, strict=True)]
        )
        if meters:
            await transaction.add_used(_total(charged))
        # 4. Take back what has now met its void.
        voided = await _take_back(transaction, met, leases, new_id) if met else list[Transfer]()
        if voided:
            await transaction.give_back_used([one.request_id for one in met])
        # 5. Promotional credit pays first.
        await settle_credit(transaction, [_charged(one) for one in charged], voided, new_id)
    repeats = len(records) - len(charged) - len(refused) - len(conflicting)
    duplicates = repeats + len(voids) - len(fresh_voids)
    uncovered = uncovered_of(charged, fundings)
    return PostingReport(charged, refused, conflicting, voided, duplicates, uncovered)


async def _conflicting(
    transaction: PostingTransaction,
    records: Sequence[UsageRecord],
    charged: Sequence[RatedRecord],
    refused: Sequence[Refused],
) -> list[Refused]:
    """Of the records that were neither charged nor refused those that are no repeats."""
    if len(charged) + len(refused) == len(records):
        return []
    first = {one.record.request_id: one.record for one in (*charged, *refused)}
    again = [one for one in records if first.get(one.request_id) is not one]
    kept = {**first, **await transaction.posted({one.request_id for one in again})}
    found: list[Refused] = []
    for record in again:
        otherwise = unlike(record, kept[record.request_id])
        if otherwise:
            reason = f"another record of this request came before: this one has {otherwise}"
            found.append(Refused(record, reason))
    return found


async def _lock_leases(
    transaction: PostingTransaction, charged: Sequence[RatedRecord], met: Sequence[Voided]
) -> Mapping[UUID, Lease]:
    """All leases that are going to change."""
    named = {one.record.lease_id for one in charged} | {one.lease_id for one in met}
    lease_ids = {lease_id for lease_id in named if lease_id is not None}
    return await transaction.leases(lease_ids) if lease_ids else {}


async def _fund(
    transaction: PostingTransaction,
    charged: Sequence[RatedRecord],
    met: Sequence[Voided],
    leases: Mapping[UUID, Lease],
) -> Sequence[Funding]:
    """Fund each charge; locks every balance that is going to change by it or by a void."""
    dues = [
        Due(one.record.tenant_id, one.record.lease_id, one.rating.charge_nanos) for one in charged
    ]
    fundings = fund(dues, leases, {})
    pairs = zip(dues, fundings, strict=True)
    touched = {due.tenant_id for due, money in pairs if money.receivable_nanos}
    touched |= {one.tenant_id for one in met}
    if touched:
        fundings = fund(dues, leases, await transaction.available(touched))
    spent: dict[UUID, int] = {}
    for due, money in zip(dues, fundings, strict=True):
        if due.lease_id is not None and money.held_nanos:
            spent[due.lease_id] = spent.get(due.lease_id, 0) + money.held_nanos
    if spent:
        await transaction.spend(spent)
    return fundings


async def _take_back(
    transaction: PostingTransaction,
    met: Sequence[Voided],
    leases: Mapping[UUID, Lease],
    new_id: Callable[[], UUID],
) -> list[Transfer]:
    by_request = {one.request_id: one for one in met}
    noted = await transaction.noted(by_request)
    voided: list[Transfer] = []
    spent: dict[UUID, int] = {}
    for charged in await transaction.charges_of(by_request):
        assert charged.request_id is not None
        one = by_request[charged.request_id]
        # What a credit note may have given back already cannot be lent again.
        lease_open = one.lease_id in leases and one.request_id not in noted
        voided.append(void(new_id(), charged, one.reason, lease_open=lease_open))
        if one.lease_id is not None and lease_open:
            spent[one.lease_id] = spent.get(one.lease_id, 0) - held_part(charged)
    await transaction.add_transfers(voided)
    if spent:
        await transaction.spend(spent)
    return voided


def held_part(charged: Transfer) -> int:
    """What of a charge came from a lease."""
    held = AccountKind.TENANT_HELD
    return -sum(line.amount_nanos for line in charged.postings if line.account.kind is held)


def uncovered_of(charged: Sequence[RatedRecord], fundings: Sequence[Funding]) -> list[Uncovered]:
    """What leases should have covered and did not, and what is owed now, by tenant."""
    found: dict[str, Uncovered] = {}
    for one, money in zip(charged, fundings, strict=True):
        from_available = money.available_nanos if one.record.lease_id is not None else 0
        if not from_available and not money.receivable_nanos:
            continue
        tenant_id = one.record.tenant_id
        before = found.get(tenant_id) or Uncovered(tenant_id, one.rating.currency, 0, 0)
        found[tenant_id] = Uncovered(
            tenant_id,
            one.rating.currency,
            before.from_available_nanos + from_available,
            before.receivable_nanos + money.receivable_nanos,
        )
    return list(found.values())


def rate_records(
    records: Sequence[UsageRecord],
    books: PriceBooks,
    currencies: Mapping[str, str],
    new_id: Callable[[], UUID],
    used: Mapping[Meter, int] | None = None,
) -> tuple[list[RatedRecord], list[Refused]]:
    """Rate each record by the price in force at its admission, or say why it cannot be billed.

    `used` is what was used before the first of them; each counts for those after it.
    """
    running = dict(used or {})
    rated: list[RatedRecord] = []
    refused: list[Refused] = []
    for record in records:
        try:
            book = _book_of(record, books, currencies)
            meters = meters_of(record, book) if books.any_graduated else ()
            before = {meter.component: running.get(meter, 0) for meter in meters}
            rating = rate(record, book, before)
        except Rejected as error:
            refused.append(Refused(record, error.reason))
        else:
            consumed = consumed_by(record, book, meters) if meters else _NOTHING
            for meter, quantity in consumed.items():
                running[meter] = running.get(meter, 0) + quantity
            rated.append(RatedRecord(record, rating, new_id(), consumed))
    return rated, refused


def _book_of(record: UsageRecord, books: PriceBooks, currencies: Mapping[str, str]) -> PriceBook:
    check_billable(record)
    currency = currencies.get(record.tenant_id)
    if currency is None:
        raise Rejected(f"tenant {record.tenant_id!r} does not exist")
    return books.in_force(currency, record.admitted_unix_ns, record.tenant_id)


def _meters(
    records: Sequence[UsageRecord], books: PriceBooks, currencies: Mapping[str, str]
) -> set[Meter]:
    """Every meter that decides a price of these records; mostly none."""
    found: set[Meter] = set()
    for record in records:
        try:
            book = _book_of(record, books, currencies)
        except Rejected:
            continue
        found.update(meters_of(record, book))
    return found


def _charged(one: RatedRecord) -> Charged:
    record = one.record
    return Charged(one.transfer_id, record.tenant_id, record.request_id, one.rating.charge_nanos)


def _total(charged: Sequence[RatedRecord]) -> Mapping[Meter, int]:
    sums: Counter[Meter] = Counter()
    for one in charged:
        sums.update(one.consumed)
    return sums


def charge_of(rated: RatedRecord, funding: Funding) -> Transfer:
    """The charge that a rated record becomes."""
    record = rated.record
    return charge(rated.transfer_id, record.request_id, record.tenant_id, rated.rating, funding)
