"""Delivered answers, as gateways committed them, against the inbox of what was charged."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.domain.audit.journal import name_of
from busbar_billing.domain.usage import UsageRecord

_US = 1_000
_KEPT_OTHERWISE = frozenset({"traceparent", "admitted_unix_ns", "finished_unix_ns"})
_COMPARED = [one.name for one in dataclasses.fields(UsageRecord) if one.name not in _KEPT_OTHERWISE]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one message of the stream says; `records` those that can be billed at all."""

    sequence: int
    records: Sequence[UsageRecord]
    voids: Sequence[UUID] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """What the inbox has about a piece of the stream."""

    of_requests: Mapping[UUID, UsageRecord]
    """Records of the requests that the piece names; the message that brought each is its
    `stream_sequence`."""
    voids: Collection[UUID]
    """Those of the piece's voids that are there."""
    brought: Sequence[tuple[int, UUID]]
    """(message, request) of every record that says it came with a message of the piece."""


def check_delivered(piece: Sequence[Delivered], kept: Kept) -> list[Breach]:
    """Each answer is charged as it was delivered, each void is known."""
    found: list[Breach] = []
    for message in piece:
        for record in message.records:
            found += [_unanswered(record.request_id, why) for why in _uncharged(record, kept)]
        for request_id in message.voids:
            if request_id not in kept.voids:
                why = f"was taken back by message {message.sequence} of USAGE, which is not noted"
                found.append(_unanswered(request_id, why))
    return found


def unaccounted(piece: Iterable[Delivered], kept: Kept) -> list[tuple[int, UUID]]:
    """What the inbox says that messages brought, and they do not: (message, request)."""
    said = {(one.sequence, record.request_id) for one in piece for record in one.records}
    return [pair for pair in kept.brought if pair not in said]


def check_brought(pairs: Iterable[tuple[int, UUID]]) -> list[Breach]:
    """What is charged and no message brought."""
    return [
        Breach(
            Check.CHARGES_ANSWERED,
            name_of(request_id),
            f"was charged as delivered by message {sequence} of USAGE, which does not say so",
        )
        for sequence, request_id in pairs
    ]


def check_without_origin(request_ids: Iterable[UUID]) -> list[Breach]:
    """What was charged although no message brought it."""
    return [
        Breach(Check.CHARGES_ANSWERED, name_of(one), "was charged without any message of USAGE")
        for one in request_ids
    ]


def _unanswered(request_id: UUID, why: str) -> Breach:
    return Breach(Check.ANSWERS_CHARGED, name_of(request_id), why)


def _uncharged(record: UsageRecord, kept: Kept) -> Iterable[str]:
    """Why an answer is not charged as it was delivered."""
    row = kept.of_requests.get(record.request_id)
    if row is None:
        yield f"was delivered by message {record.stream_sequence} of USAGE and is not charged"
        return
    if row.stream_sequence != record.stream_sequence:
        return  # told twice; the other message is what it is compared with
    for name in _COMPARED:
        said, noted = getattr(record, name), getattr(row, name)
        if said != noted:
            yield f"was delivered with {name} {said!r}; it is kept with {noted!r}"
    for name in ("admitted_unix_ns", "finished_unix_ns"):
        said, noted = getattr(record, name) // _US, getattr(row, name) // _US
        if said != noted:
            yield f"was delivered with {name} {said} µs; it is kept with {noted} µs"
