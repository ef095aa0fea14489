"""Usage records as billing understands them, and which of them can be billed at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from uuid import UUID

from busbar_errors import Rejected

TOKENS_MAX = 10**9
BYTES_MAX = 2**40
COMPUTE_US_MAX = 7 * 24 * 3600 * 10**6
CLOCK_AHEAD_MAX_NS = 60 * 10**9
"""Nothing is stored before it is finished: beyond the usual, the gateway's clock is ahead."""
CLOCK_BEHIND_MAX_NS = 15 * 60 * 10**9
"""A record may wait this long for a bus that was away; beyond it, the clock is behind."""
UNIX_NS_MIN = 1_577_836_800 * 10**9  # 2020-01-01
UNIX_NS_MAX = 4_102_444_800 * 10**9  # 2100-01-01
TEXT_MAX = 200


class Outcome(StrEnum):
    """How a billable request ended for the customer."""

    COMPLETED = "completed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What was delivered for one request; the fields are those of busbar.gateway.v1.UsageRecord."""

    request_id: UUID
    tenant_id: str
    key_id: str
    deployment: str
    price_class: str
    api: str
    outcome: Outcome
    admitted_unix_ns: int
    finished_unix_ns: int
    input_tokens: int
    output_tokens: int
    request_bytes: int
    response_bytes: int
    compute_us: int
    node: str
    attempt: int
    gateway_id: str
    traceparent: str
    cached_tokens: int = 0
    project_id: str = ""
    lease_id: UUID | None = None
    stream_sequence: int = 0
    """The message of USAGE that brought it; 0: none."""


_TOLD_OTHERWISE = frozenset(
    {"gateway_id", "traceparent", "stream_sequence", "admitted_unix_ns", "finished_unix_ns"}
)
_DELIVERED = [one.name for one in fields(UsageRecord) if one.name not in _TOLD_OTHERWISE]
_SHOWN_MAX = 40


@dataclass(frozen=True, slots=True)
class UsageVoid:
    """Takes back the record of the same request, whichever of the two comes first."""

    request_id: UUID
    tenant_id: str
    reason: str


def check_billable(record: UsageRecord) -> None:
    """Raise Rejected when no gateway can have meant this."""
    counted = (
        ("input_tokens", record.input_tokens, TOKENS_MAX),
        ("output_tokens", record.output_tokens, TOKENS_MAX),
        ("request_bytes", record.request_bytes, BYTES_MAX),
        ("response_bytes", record.response_bytes, BYTES_MAX),
        ("compute_us", record.compute_us, COMPUTE_US_MAX),
        ("attempt", record.attempt, 10**6),
    )
    for name, value, limit in counted:
        if not 0 <= value <= limit:
            raise Rejected(f"{name} is {value}: at most {limit} can be true")
    if not 0 <= record.cached_tokens <= record.input_tokens:
        raise Rejected(
            f"cached_tokens is {record.cached_tokens}: of {record.input_tokens} input tokens"
        )
    for name, at_ns in (
        ("admitted_unix_ns", record.admitted_unix_ns),
        ("finished_unix_ns", record.finished_unix_ns),
    ):
        if not UNIX_NS_MIN <= at_ns <= UNIX_NS_MAX:
            raise Rejected(f"{name} is {at_ns}: not a time between 2020 and 2100")
    _check_texts(record)


def _check_texts(record: UsageRecord) -> None:
    if not record.tenant_id:
        raise Rejected("tenant_id is empty: nobody to charge")
    for text in (
        record.tenant_id,
        record.key_id,
        record.deployment,
        record.price_class,
        record.api,
        record.node,
        record.gateway_id,
        record.project_id,
    ):
        if len(text) > TEXT_MAX or "\x00" in text:
            raise Rejected(f"a name is longer than {TEXT_MAX} or holds NUL: {text[:40]!r}")


def by_the_stream_clock(record: UsageRecord, stored_unix_ns: int) -> UsageRecord:
    """The record, its times moved to when its stream stored it if they cannot be right.

    A gateway finishes a record and commits it at once, so the time at which the
    stream stored it, by the server's clock, says how far the gateway's is off.
    """
    ahead_ns = record.finished_unix_ns - stored_unix_ns
    if -CLOCK_BEHIND_MAX_NS <= ahead_ns <= CLOCK_AHEAD_MAX_NS:
        return record
    return replace(
        record,
        admitted_unix_ns=record.admitted_unix_ns - ahead_ns,
        finished_unix_ns=record.finished_unix_ns - ahead_ns,
    )


def unlike(record: UsageRecord, kept: UsageRecord) -> str:
    """What a record says otherwise than the one that is kept of the same request; "" where it
    repeats that one.

    Who told it, and when, is no part of what was delivered: its times move with when it came
    (`by_the_stream_clock`) and are kept to the microsecond, so only what lies between them counts.
    """
    pairs = [(name, getattr(record, name), getattr(kept, name)) for name in _DELIVERED]
    took_us, kept_us = _took_us(record), _took_us(kept)
    if abs(took_us - kept_us) > 1:
        pairs.append(("a duration in us of", took_us, kept_us))
    return ", ".join(
        f"{name} {_shown(said)} instead of {_shown(before)}"
        for name, said, before in pairs
        if said != before
    )


def _took_us(record: UsageRecord) -> int:
    return record.finished_unix_ns // 1_000 - record.admitted_unix_ns // 1_000


def _shown(value: object) -> str:
    return str(value) if isinstance(value, int) else repr(str(value)[:_SHOWN_MAX])


def first_of_each(records: Iterable[UsageRecord]) -> list[UsageRecord]:
    """Drop repeats of a request id; the first stays."""
    firsts: dict[UUID, UsageRecord] = {}
    for record in records:
        firsts.setdefault(record.request_id, record)
    return list(firsts.values())
