"""Transfers against themselves, and charges against the records that they charge."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from busbar_errors import BusbarError, Rejected

from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.domain.audit.moves import misplaced
from busbar_billing.domain.ledger import AccountKind, TransferKind
from busbar_billing.domain.prices import Component, PriceBooks
from busbar_billing.domain.rating import Rating, rate
from busbar_billing.domain.usage import UsageRecord

_TENANTS_MONEY = frozenset(
    {AccountKind.TENANT_AVAILABLE, AccountKind.TENANT_HELD, AccountKind.TENANT_RECEIVABLE}
)
_OUR_REVENUE = frozenset({AccountKind.REVENUE})
_OF_REQUESTS: Mapping[str, str] = {TransferKind.CHARGE: "charge", TransferKind.VOID: "void"}
"""What the idempotency keys of these kinds begin with."""
DATED_WITHIN_NS = 24 * 3600 * 10**9
"""Clocks of billing and of the database that show another hour, or another time zone, differ by
less."""
RECORDED_WITHIN_NS = 3600 * 10**9
"""A charge and its record are written in one transaction, by one clock."""
VERSIONS_SETTLE_NS = 60 * 10**9
"""A price that became visible this shortly before a posting may not have been seen by it."""


@dataclass(frozen=True, slots=True)
class PostingRow:
    """A posting and the account that it names; `account_kind` None: there is no such account."""

    account_id: int
    currency: str
    amount_nanos: int
    account_kind: str | None
    account_tenant: str | None = None
    account_currency: str | None = None


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A transfer and its postings as they are stored; `kind` None: postings without a transfer."""

    transfer_id: UUID
    kind: str | None
    idempotency_key: str
    tenant_id: str | None
    request_id: UUID | None
    postings: Sequence[PostingRow]
    vouched: bool | None = None
    """Whether billing posted it as it stands; None where it need not say so."""
    posted_unix_ns: int = 0
    dated: bool = False
    """Whether its id is from since when ids are compared with `posted_unix_ns`."""

    @property
    def made_unix_ns(self) -> int:
        """When its id was made: RFC 9562, section 5.7."""
        return (self.transfer_id.int >> 80) * 10**6


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A record of the inbox, and how it says it was rated and posted."""

    record: UsageRecord
    price_version: int
    rated_class: str
    before: Mapping[Component, int]
    amount_nanos: int
    currency: str
    transfer_id: UUID
    posted_unix_ns: int


@dataclass(frozen=True, slots=True)
class Related:
    """What a chunk of the journal is compared with, by request."""

    records: Mapping[UUID, RecordRow] = field(default_factory=dict[UUID, RecordRow])
    charges: Mapping[UUID, Sequence[TransferRow]] = field(
        default_factory=dict[UUID, Sequence[TransferRow]]
    )
    """Every charge of the requests that the chunk voids."""
    voids: frozenset[UUID] = frozenset()
    """Requests that somebody asked to take back."""


def check_transfers(transfers: Iterable[TransferRow]) -> list[Breach]:
    """Each sums to zero per currency and moves money as its kind does, between accounts that exist
    and are nobody else's."""
    return [
        Breach(Check.TRANSFERS_BALANCED, f"transfer {one.transfer_id}", detail)
        for one in transfers
        for detail in _unbalanced(one)
    ]


def _unbalanced(transfer: TransferRow) -> Iterable[str]:
    if transfer.kind is None:
        yield f"{len(transfer.postings)} postings belong to no transfer"
        return
    if not transfer.postings:
        yield "has no postings"
    for currency, nanos in sorted(sums(transfer.postings).items()):
        if nanos:
            yield f"postings sum to {nanos} nanos of {currency}, not to zero"
    for line in transfer.postings:
        if line.account_kind is None:
            yield f"posts to account {line.account_id}, which is not there"
        elif line.account_currency != line.currency:
            yield f"posts {line.currency} to an account of {line.account_currency}"
        elif line.account_tenant is not None and line.account_tenant != transfer.tenant_id:
            theirs = f"{line.account_kind} of {line.account_tenant}"
            yield f"of tenant {transfer.tenant_id} posts to {theirs}"
    yield from misplaced(
        transfer.kind,
        ((line.account_kind, line.amount_nanos) for line in transfer.postings if line.account_kind),
    )
    expected = _OF_REQUESTS.get(transfer.kind)
    if expected and transfer.idempotency_key != f"{expected}:{transfer.request_id}":
        yield f"is a {transfer.kind} under the key {transfer.idempotency_key!r}"


def check_vouched(transfers: Iterable[TransferRow]) -> list[Breach]:
    """What people or payments move was posted by billing, as it stands."""
    return [
        Breach(
            Check.TRANSFERS_ASKED_FOR,
            f"transfer {one.transfer_id}",
            f"is a {one.kind} that nobody asked billing for, or not as it was asked for: its "
            "warrant is missing or of something else",
        )
        for one in transfers
        if one.vouched is False
    ]


def check_dated(transfers: Iterable[TransferRow], related: Related) -> list[Breach]:
    """None was posted before its id was made, no charge before its record.

    That it was posted long after that is no breach: whoever posts may have been paused.
    """
    return [
        Breach(Check.TRANSFERS_DATED, f"transfer {one.transfer_id}", detail)
        for one in transfers
        if one.kind is not None
        for detail in _misdated(one, related)
    ]


def _misdated(transfer: TransferRow, related: Related) -> Iterable[str]:
    made, posted = transfer.made_unix_ns, transfer.posted_unix_ns
    if transfer.dated and made - posted > DATED_WITHIN_NS:
        yield f"says that it was posted at {_written(posted)}; its id was made at {_written(made)}"
    if transfer.kind != TransferKind.CHARGE or transfer.request_id is None:
        return
    row = related.records.get(transfer.request_id)
    if row is None or row.transfer_id != transfer.transfer_id:
        return
    came = row.posted_unix_ns
    if came - posted > RECORDED_WITHIN_NS:
        yield f"says that it was posted at {_written(posted)}, its record at {_written(came)}"


def _written(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def sums(postings: Iterable[PostingRow]) -> dict[str, int]:
    """Sum by currency."""
    total: defaultdict[str, int] = defaultdict(int)
    for line in postings:
        total[line.currency] += line.amount_nanos
    return total


def check_charges(
    transfers: Iterable[TransferRow], related: Related, books: PriceBooks
) -> list[Breach]:
    """Each charge is of the one record that names it, and of what that record costs rated again;
    each void takes back what was charged, because somebody asked for it."""
    found: list[Breach] = []
    for one in transfers:
        if one.kind == TransferKind.CHARGE:
            found += _check_charge(one, related, books)
        elif one.kind == TransferKind.VOID:
            found += _check_void(one, related)
    return found


def _check_charge(charge: TransferRow, related: Related, books: PriceBooks) -> list[Breach]:
    subject = f"transfer {charge.transfer_id}"
    row = related.records.get(charge.request_id) if charge.request_id else None
    if row is None:
        detail = f"charges {name_of(charge.request_id)}, of which there is no usage record"
        return [Breach(Check.RECORDS_CHARGED_ONCE, subject, detail)]
    if row.transfer_id != charge.transfer_id:
        detail = (
            f"charges {name_of(charge.request_id)} again: its record names transfer "
            f"{row.transfer_id}"
        )
        return [Breach(Check.RECORDS_CHARGED_ONCE, subject, detail)]
    subject = name_of(charge.request_id)
    try:
        rating = rate(row.record, books.version(row.price_version), row.before)
        wanted = _in_force(row, books)
    except (BusbarError, KeyError) as error:
        why = error.reason if isinstance(error, BusbarError) else f"there is no class {error}"
        detail = f"cannot be rated again by price book {row.price_version}: {why}"
        return [Breach(Check.CHARGES_RATED_AGAIN, subject, detail)]
    details = [*_misrated(row, rating, wanted), *_misposted(charge, row, rating)]
    return [Breach(Check.CHARGES_RATED_AGAIN, subject, detail) for detail in details]


def _misrated(row: RecordRow, rating: Rating, wanted: Sequence[int]) -> Iterable[str]:
    """Why the record does not say what rating it again says."""
    if row.price_version not in wanted:
        yield f"was rated by price book {row.price_version}; in force was {wanted[0]}"
    if (rating.charge_nanos, rating.currency) != (row.amount_nanos, row.currency):
        yield (
            f"is kept as {row.amount_nanos} nanos of {row.currency}; rated again it costs "
            f"{rating.charge_nanos} of {rating.currency}"
        )
    if rating.rated_class != row.rated_class:
        yield f"is kept as of class {row.rated_class}; rated again it is {rating.rated_class}"


def _in_force(row: RecordRow, books: PriceBooks) -> Sequence[int]:
    """What may have been in force when it was posted, by what was known last first: nothing was
    known of later versions."""
    at, tenant_id = row.record.admitted_unix_ns, row.record.tenant_id
    now = books.in_force(row.currency, at, tenant_id).version
    if now == row.price_version:
        return [now]
    found: list[int] = []
    published = (book.created_unix_ns for book in books.newest_first)
    for moment in known_moments(row.posted_unix_ns, published):
        with contextlib.suppress(Rejected):  # there were no prices yet
            known = books.known_at(moment)
            found.append(known.in_force(row.currency, at, tenant_id).version)
    return found or [now]


def known_moments(posted_unix_ns: int, published_unix_ns: Iterable[int]) -> Sequence[int]:
    """The moments, last first, that differ in what a posting may have known of prices: it read them
    at any of them."""
    since = posted_unix_ns - VERSIONS_SETTLE_NS
    between = (at for at in published_unix_ns if since < at < posted_unix_ns)
    return sorted({posted_unix_ns, since, *between}, reverse=True)


def _misposted(charge: TransferRow, row: RecordRow, rating: Rating) -> Iterable[str]:
    """Why the charge does not say what its record says."""
    if charge.tenant_id != row.record.tenant_id:
        yield f"is of tenant {row.record.tenant_id}; its charge is of {charge.tenant_id}"
    taken = -_sum_of(charge, _TENANTS_MONEY)
    if taken != row.amount_nanos:
        yield f"costs {row.amount_nanos} nanos; transfer {charge.transfer_id} takes {taken}"
    earned = _sum_of(charge, _OUR_REVENUE)
    if earned != rating.earned_nanos:
        yield f"earns {rating.earned_nanos} nanos; {earned} reach revenue"


def _check_void(void: TransferRow, related: Related) -> list[Breach]:
    subject = f"transfer {void.transfer_id}"
    charges = related.charges.get(void.request_id, ()) if void.request_id else ()
    if void.request_id not in related.voids:
        detail = f"takes {name_of(void.request_id)} back, which nobody asked for"
        return [Breach(Check.RECORDS_CHARGED_ONCE, subject, detail)]
    charged = -sum(_sum_of(one, _TENANTS_MONEY) for one in charges)
    given = _sum_of(void, _TENANTS_MONEY)
    if given != charged:
        detail = f"gives {given} nanos back of {name_of(void.request_id)}, charged {charged}"
        return [Breach(Check.CHARGES_RATED_AGAIN, subject, detail)]
    return []


def _sum_of(transfer: TransferRow, kinds: frozenset[AccountKind]) -> int:
    return sum(line.amount_nanos for line in transfer.postings if line.account_kind in kinds)


def name_of(request_id: UUID | None) -> str:
    """A request as customers know it."""
    return f"req_{request_id.hex}" if request_id else "no request"


@dataclass(frozen=True, slots=True)
class InboxRow:
    """A record of the inbox and what the journal has of it."""

    request_id: UUID
    transfer_id: UUID
    charged: bool
    """Whether that transfer is a charge of that request."""
    void_wanted: bool
    voided: bool


def check_inbox(rows: Iterable[InboxRow]) -> list[Breach]:
    """Each record is charged, and taken back when somebody asked for that."""
    found: list[Breach] = []
    for row in rows:
        subject = name_of(row.request_id)
        if not row.charged:
            detail = f"was recorded, but transfer {row.transfer_id} does not charge it"
            found.append(Breach(Check.RECORDS_CHARGED_ONCE, subject, detail))
        if row.void_wanted and not row.voided:
            detail = "is to be taken back, and is not"
            found.append(Breach(Check.RECORDS_CHARGED_ONCE, subject, detail))
    return found
