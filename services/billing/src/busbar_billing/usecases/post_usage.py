"""Post usage: each billable record is charged once, each void takes its charge back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from busbar_errors import Rejected

from busbar_billing.domain.ledger import Transfer, charge, void
from busbar_billing.domain.metering import Meter, consumed_by, meters_of
from busbar_billing.domain.prices import PriceBook, PriceBooks
from busbar_billing.domain.rating import Rating, rate
from busbar_billing.domain.usage import UsageRecord, UsageVoid, check_billable, first_of_each


@dataclass(frozen=True, slots=True)
class RatedRecord:
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
class TakenBack:
    """A posted charge that has a void."""

    charged: Transfer
    reason: str


@dataclass(frozen=True, slots=True)
class PostingReport:
    """What a posting did; repeats are counted and otherwise nothing."""

    charged: Sequence[RatedRecord] = field(default_factory=list[RatedRecord])
    refused: Sequence[Refused] = field(default_factory=list[Refused])
    voided: Sequence[Transfer] = field(default_factory=list[Transfer])
    duplicates: int = 0


class PostingTransaction(Protocol):
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

    async def not_posted(self, records: Sequence[UsageRecord]) -> list[UsageRecord]:
        """Those of the records that are not in the inbox."""
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

    async def taken_back(self, request_ids: Collection[UUID]) -> Sequence[TakenBack]:
        """Of these requests, those of which both the charge and a void are there."""
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
            firsts = await transaction.not_posted(firsts)
        rated, refused = rate_records(firsts, books, currencies, new_id, used)
        # 2. Keep out what is there already.
        fresh = await transaction.add_records(rated)
        fresh_voids = await transaction.add_voids(voids) if voids else set[UUID]()
        # 3. Charge.
        charged = [one for one in rated if one.record.request_id in fresh]
        await transaction.add_transfers([charge_of(one) for one in charged])
        if meters:
            await transaction.add_used(_total(charged))
        # 4. Take back what has now met its void.
        pairs = await transaction.taken_back(fresh | fresh_voids)
        voided = [void(new_id(), pair.charged, pair.reason) for pair in pairs]
        await transaction.add_transfers(voided)
        if voided:
            await transaction.give_back_used([one.request_id for one in voided if one.request_id])
    duplicates = len(records) - len(refused) - len(charged) + len(voids) - len(fresh_voids)
    return PostingReport(charged, refused, voided, duplicates)


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
            meters = meters_of(record, book)
            before = {meter.component: running.get(meter, 0) for meter in meters}
            rating = rate(record, book, before)
        except Rejected as error:
            refused.append(Refused(record, error.reason))
        else:
            consumed = consumed_by(record, book, meters)
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


def _total(charged: Sequence[RatedRecord]) -> Mapping[Meter, int]:
    sums: Counter[Meter] = Counter()
    for one in charged:
        sums.update(one.consumed)
    return sums


def charge_of(rated: RatedRecord) -> Transfer:
    """The charge that a rated record becomes."""
    record = rated.record
    return charge(rated.transfer_id, record.request_id, record.tenant_id, rated.rating)
