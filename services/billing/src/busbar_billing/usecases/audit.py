"""Audit the books: read them piece by piece, decide on each piece, replay the balances.

What holds of one transfer or one request is checked in pieces, each read at one
moment: everything of a posting is committed together, so a piece never shows half
of it. What holds of all of them together is compared with what was added up on the
way; where that differs, both sides are read again in one statement, so that a posting
which was under way is never taken for a breach.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from busbar_billing.domain.audit import journal, payments, price_rows, standing
from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.domain.audit.journal import InboxRow, Related, TransferRow
from busbar_billing.domain.audit.payments import PaymentRow
from busbar_billing.domain.audit.price_rows import RepeatedPrice, UnlikePublished
from busbar_billing.domain.audit.seals import Part
from busbar_billing.domain.audit.standing import (
    AccountRow,
    ClosedLease,
    CreditRow,
    GivenOut,
    HoldRow,
    NumberedRow,
    SpendingRow,
    Summed,
)
from busbar_billing.domain.prices import PriceBooks
from busbar_billing.usecases.audit_answers import Answers, Progress, check_answers, check_origins
from busbar_billing.usecases.audit_seals import FIRST_ID, Closed
from busbar_billing.usecases.audit_statements import Recount, recount_statements
from busbar_billing.usecases.audit_work import Work, check_months, check_work

PIECE = 250
"""Rows decided on at once; in between others have their turn."""
LAST_ID = UUID(int=2**128 - 1)
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_CONFIRMED_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class JournalPiece:
    """Transfers in the order of their ids; `last` None: there are no more."""

    transfers: Sequence[TransferRow]
    related: Related
    books: PriceBooks
    last: UUID | None


@dataclass(frozen=True, slots=True)
class InboxPiece:
    """Records in the order of their request ids; `last` None: there are no more."""

    rows: Sequence[InboxRow]
    last: UUID | None


@dataclass(frozen=True, slots=True)
class PricesFound:
    """The price book, and what it says more than once."""

    books: PriceBooks
    repeated: Sequence[RepeatedPrice]
    published: int
    """Versions that billing has to have vouched for."""
    unlike: Sequence[UnlikePublished]


class Prices(Protocol):
    """The price book that records are rated by."""

    async def read_again(self) -> PricesFound:
        """The book as it stands now; what is rated from now on is rated by it."""
        ...


class Journal(Protocol):
    """The journal and the inbox."""

    async def rows(self) -> int:
        """About how many transfers and records there are."""
        ...

    async def journal(self, after: UUID, upto: UUID, limit: int) -> JournalPiece:
        """The next `limit` transfers with their postings, and what they are about."""
        ...

    async def inbox(self, after: UUID, limit: int) -> InboxPiece:
        """The next `limit` records, and whether they are charged."""
        ...


class Standing(Protocol):
    """What is kept beside the journal."""

    def accounts(self, since: UUID) -> AsyncIterator[Sequence[AccountRow]]:
        """All accounts and what was posted to them after the transfer `since`, at one moment."""
        ...

    async def summed(self, account_ids: Sequence[int]) -> list[Summed]:
        """These accounts with the sum of all their postings, at one moment."""
        ...

    def holds(self) -> AsyncIterator[Sequence[HoldRow]]:
        """Every tenant that holds money in leases, at one moment."""
        ...

    async def closed_leases(self) -> list[ClosedLease]:
        """Closed ones of which something is left."""
        ...

    async def credits(self, after: UUID, limit: int) -> list[CreditRow]:
        """The next credits."""
        ...

    async def spending(self, after: UUID, limit: int) -> list[SpendingRow]:
        """The next transfers that spent credit or gave it back."""
        ...

    async def payments(self, after: str, limit: int) -> list[PaymentRow]:
        """The next payments, and what the journal has of each."""
        ...

    def numbered(self) -> AsyncIterator[Sequence[NumberedRow]]:
        """Every statement and credit note."""
        ...

    async def given_out(self) -> list[GivenOut]:
        """The last number of each legal entity."""
        ...


@dataclass(frozen=True, slots=True)
class Books:
    """Everything that is audited."""

    prices: Prices
    journal: Journal
    standing: Standing
    answers: Answers
    work: Work
    recount: Recount


async def audit(
    books: Books, settled: UUID, report: Report, progress: Progress, closed: Closed | None = None
) -> None:
    """Check everything from zero, or from what is closed on. Transfers up to `settled` are all
    committed; those after it are read with the balances."""
    closed = closed or Closed()
    report.looked(closed.rows.get(Part.JOURNAL, 0), Check.TRANSFERS_BALANCED, Check.TRANSFERS_DATED)
    report.looked(
        closed.rows.get(Part.INBOX, 0), Check.RECORDS_CHARGED_ONCE, Check.CHARGES_RATED_AGAIN
    )
    await check_prices(books.prices, report)
    begin = closed.after(Part.JOURNAL)
    replayed = await replay(books.journal, begin, settled, report, progress)
    for account_id, nanos in closed.posted.items():
        replayed[account_id] = replayed.get(account_id, 0) + nanos
    await replay(books.journal, max(begin, settled), LAST_ID, report, progress)
    await check_inbox(books.journal, report, progress, closed.after(Part.INBOX))
    await check_answers(books.answers, 0, await books.answers.stream.extent(), report, progress)
    await check_origins(books.answers.inbox, report)
    await check_work(books.work, report, progress, EARLIEST)
    await check_months(books.work, report)
    await check_balances(books.standing, settled, replayed, report)
    await check_leases(books.standing, report)
    await check_credits(books.standing, report)
    await check_payments(books.standing, report)
    await check_statements(books.standing, report)
    await recount_statements(books.recount, report)


async def check_prices(prices: Prices, report: Report) -> None:
    """Read the price book, so that nothing is rated by what somebody remembers, and check it."""
    found = await prices.read_again()
    report.looked(len(found.books.newest_first), Check.PRICES_PLAIN)
    report.add(price_rows.check_versions(found.books))
    report.add(price_rows.check_repeated(found.repeated))
    report.looked(found.published, Check.PRICES_PUBLISHED)
    report.add(price_rows.check_published(found.unlike))


async def replay(
    books: Journal, after: UUID, upto: UUID, report: Report, progress: Progress
) -> dict[int, int]:
    """Check transfers and charges; returns what was posted to each account."""
    posted: dict[int, int] = {}
    last: UUID | None = after
    while last is not None:
        before = report.of(Check.TRANSFERS_BALANCED).rows
        last = await replay_piece(books, last, upto, report, posted)
        progress(Check.CHARGES_RATED_AGAIN, report.of(Check.TRANSFERS_BALANCED).rows - before)
    return posted


async def replay_piece(
    books: Journal, after: UUID, upto: UUID, report: Report, posted: dict[int, int]
) -> UUID | None:
    """Check the next transfers, adding to what was posted to each account; returns the last of
    them, None when there are no more up to `upto`."""
    piece = await books.journal(after, upto, PIECE)
    report.looked(len(piece.transfers), Check.TRANSFERS_BALANCED, Check.TRANSFERS_DATED)
    report.looked(len(piece.related.records), Check.CHARGES_RATED_AGAIN)
    report.looked(
        sum(one.vouched is not None for one in piece.transfers), Check.TRANSFERS_ASKED_FOR
    )
    report.add(journal.check_transfers(piece.transfers))
    report.add(journal.check_vouched(piece.transfers))
    report.add(journal.check_dated(piece.transfers, piece.related))
    report.add(journal.check_charges(piece.transfers, piece.related, piece.books))
    for transfer in piece.transfers:
        for line in transfer.postings:
            posted[line.account_id] = posted.get(line.account_id, 0) + line.amount_nanos
    return piece.last


async def check_inbox(
    books: Journal, report: Report, progress: Progress, after: UUID = FIRST_ID
) -> None:
    """Every record is charged, and taken back where that was asked for."""
    last: UUID | None = after
    while last is not None:
        before = report.of(Check.RECORDS_CHARGED_ONCE).rows
        last = await check_inbox_piece(books, last, report)
        progress(Check.RECORDS_CHARGED_ONCE, report.of(Check.RECORDS_CHARGED_ONCE).rows - before)


async def check_inbox_piece(books: Journal, after: UUID, report: Report) -> UUID | None:
    """The next records; returns the last of them, None when there are no more."""
    piece = await books.inbox(after, PIECE)
    report.looked(len(piece.rows), Check.RECORDS_CHARGED_ONCE)
    report.add(journal.check_inbox(piece.rows))
    return piece.last


async def check_balances(
    books: Standing, since: UUID, replayed: dict[int, int], report: Report
) -> None:
    """Balances are what was replayed and what came since, and sum to zero."""
    totals: defaultdict[str, int] = defaultdict(int)
    suspects: list[AccountRow] = []
    async for accounts in books.accounts(since):
        report.looked(len(accounts), Check.BALANCES_REPLAYED)
        report.add(standing.check_held(accounts))
        suspects += standing.unlike_the_journal(accounts, replayed)
        for one in accounts:
            totals[one.currency] += one.balance_nanos
    report.add(standing.check_totals(totals))
    for start in range(0, len(suspects), _CONFIRMED_AT_ONCE):
        asked = suspects[start : start + _CONFIRMED_AT_ONCE]
        breaches = standing.check_balances(await books.summed([one.account_id for one in asked]))
        report.add(breaches)
        if not breaches:  # something was committed behind the replay: let it begin here
            for one in asked:
                replayed[one.account_id] = one.balance_nanos - one.posted_since_nanos


async def check_leases(books: Standing, report: Report) -> None:
    """Holds are what is outstanding."""
    async for holds in books.holds():
        report.looked(len(holds), Check.LEASES_HELD)
        report.add(standing.check_holds(holds))
    report.add(standing.check_closed(await books.closed_leases()))


async def check_credits(books: Standing, report: Report) -> None:
    """Credits and who spent them."""
    after = FIRST_ID
    while credits_ := await books.credits(after, PIECE):
        report.looked(len(credits_), Check.CREDITS_SPENT)
        report.add(standing.check_credits(credits_))
        after = credits_[-1].credit_id
    after = FIRST_ID
    while spending := await books.spending(after, PIECE):
        report.add(standing.check_spending(spending))
        after = spending[-1].transfer_id


async def check_payments(books: Standing, report: Report) -> None:
    """Payments against the journal."""
    after = ""
    while rows := await books.payments(after, PIECE):
        report.looked(len(rows), Check.PAYMENTS_POSTED)
        report.add(payments.check_payments(rows))
        after = rows[-1].reference
    report.looked(0, Check.PAYMENTS_POSTED)


async def check_statements(books: Standing, report: Report) -> None:
    """Numbers without gaps."""
    async for rows in books.numbered():
        report.looked(len(rows), Check.STATEMENTS_NUMBERED)
        report.add(standing.check_numbers(rows))
    report.add(standing.check_given_out(await books.given_out()))
    report.looked(0, Check.STATEMENTS_NUMBERED)
