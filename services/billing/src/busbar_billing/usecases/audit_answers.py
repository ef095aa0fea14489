"""Audit deliveries: the stream of what gateways delivered beside the inbox of what was charged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol
from uuid import UUID

from busbar_errors import Unavailable

from busbar_billing.domain.audit.answers import (
    Delivered,
    Kept,
    check_brought,
    check_delivered,
    check_without_origin,
    unaccounted,
)
from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.domain.prices import PriceBooks
from busbar_billing.usecases.post_usage import rate_records

MESSAGES = 100
"""Messages of the stream read at once; each holds what a gateway committed together."""

Progress = Callable[[Check, int], None]
"""Told what is being looked at and how many more rows were."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What is in the stream: from `first` on, all up to `posted` is posted or refused for good.

    `created_at` tells it from an earlier stream of the same name, which counted from 1, too.
    """

    first: int
    posted: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeptPiece:
    """What the inbox has about a piece of the stream, and what it takes to bill the rest."""

    kept: Kept
    books: PriceBooks
    currencies: Mapping[str, str]


class Stream(Protocol):
    """What gateways delivered, by the numbers of the stream's messages."""

    async def extent(self) -> Extent:
        """Where the stream begins and how far it is posted."""
        ...

    async def read(self, after: int, upto: int, limit: int) -> list[Delivered]:
        """Up to `limit` messages, in order; fewer, or none, are no sign of the end: a copy of the
        stream that lags behind may answer."""
        ...

    async def read_again(self, sequence: int) -> Delivered | None:
        """One message for certain; None when it is not there."""
        ...


class Inbox(Protocol):
    """What was charged."""

    async def kept(
        self, piece: Sequence[Delivered], first: int, last: int, since: datetime
    ) -> KeptPiece:
        """What there is of a piece's requests, and of messages `first` to `last` posted `since`."""
        ...

    async def without_origin(self) -> list[UUID]:
        """Requests charged without a message since it is noted which one brought them."""
        ...


@dataclass(frozen=True, slots=True)
class Answers:
    """Both sides."""

    stream: Stream
    inbox: Inbox


async def check_answers(
    answers: Answers, after: int, extent: Extent, report: Report, progress: Progress
) -> None:
    """Compare all messages from behind `after` on that are posted: what is still to be posted is
    nobody's breach."""
    last = max(after, extent.first - 1)
    while last < extent.posted:
        last = await check_piece(answers, last, extent, report, progress)


async def check_piece(
    answers: Answers, after: int, extent: Extent, report: Report, progress: Progress
) -> int:
    """Compare the next messages; returns up to which. Raises Unavailable when the copy of the
    stream that answers lacks them."""
    piece = await answers.stream.read(after, extent.posted, MESSAGES)
    if not piece and await answers.stream.read_again(extent.posted) is not None:
        raise Unavailable("a copy of the usage stream lags behind: it is read again later")
    last = piece[-1].sequence if piece else extent.posted
    found = await answers.inbox.kept(piece, after + 1, last, extent.created_at)
    piece = [_billable(message, found) for message in piece]
    report.looked(sum(len(one.records) for one in piece), Check.ANSWERS_CHARGED)
    report.looked(len(found.kept.brought), Check.CHARGES_ANSWERED)
    report.add(check_delivered(piece, found.kept))
    suspects = unaccounted(piece, found.kept)
    report.add(check_brought([one for one in suspects if not await _there(answers.stream, *one)]))
    progress(Check.ANSWERS_CHARGED, last - after)
    return last


def _billable(message: Delivered, found: KeptPiece) -> Delivered:
    """Without what is not charged because it never can be: that is among the dead letters."""
    missing = [
        record for record in message.records if record.request_id not in found.kept.of_requests
    ]
    if not missing:
        return message
    _, refused = rate_records(missing, found.books, found.currencies, lambda: UUID(int=0))
    hopeless = {one.record.request_id for one in refused}
    billable = [record for record in message.records if record.request_id not in hopeless]
    return replace(message, records=billable)


async def _there(stream: Stream, sequence: int, request_id: UUID) -> bool:
    """Whether a message says it after all, or is gone because of its age."""
    message = await stream.read_again(sequence)
    if message is not None:
        return any(record.request_id == request_id for record in message.records)
    return sequence < (await stream.extent()).first


async def check_origins(inbox: Inbox, report: Report) -> None:
    """Nothing is charged that no message brought."""
    report.add(check_without_origin(await inbox.without_origin()))
