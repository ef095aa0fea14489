"""Putting aside what can never be handled, with enough beside it to replay it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from busbar_messaging.connection import publish_durably
from busbar_messaging.topology import ConsumerSpec, dead_letter_subject

_GIVE_UP_AFTER = timedelta(seconds=15)

REASON = "Busbar-Reason"
SUBJECT = "Busbar-Subject"
STREAM = "Busbar-Stream"
SEQUENCE = "Busbar-Sequence"
STORED_AT = "Busbar-Stored-At"
"""When its stream stored the message first, in Unix ns by the server's clock."""
_REASON_MAX = 500


_DIRECT_TIME = "Nats-Time-Stamp"
_DIRECT_SEQUENCE = "Nats-Sequence"
_V1_TOKENS, _V1_TIME, _V2_TIME = 9, 7, 9
"""Where a delivered message's reply subject says when it was stored: NATS ADR-15."""


def stored_unix_ns(message: Msg) -> int:
    """When its stream stored the message; for a replayed one, when it did so the first time.

    The same for a message that a consumer delivered and for one that was got directly.
    """
    headers = message.headers or {}
    said = headers.get(STORED_AT, "")
    if said.isascii() and said.isdigit():
        return int(said)
    if direct := headers.get(_DIRECT_TIME):
        return unix_ns_of_text(direct)
    tokens = message.reply.split(".")
    return int(tokens[_V1_TIME if len(tokens) == _V1_TOKENS else _V2_TIME])


def stream_sequence(message: Msg) -> int:
    """The message's number in its stream, delivered by a consumer or got directly."""
    direct = (message.headers or {}).get(_DIRECT_SEQUENCE)
    return int(direct) if direct else message.metadata.sequence.stream


def unix_ns_of_text(rfc3339: str) -> int:
    """Nanoseconds since 1970 of a moment in UTC as the server writes it, exactly."""
    seconds, _, fraction = rfc3339.removesuffix("Z").partition(".")
    whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
    return int(whole.timestamp()) * 10**9 + int(fraction.ljust(9, "0") or 0)


async def put_aside(
    jetstream: JetStreamContext,
    service: str,
    consumer: ConsumerSpec,
    message: Msg,
    reason: str,
    *,
    payload: bytes | None = None,
) -> None:
    """Store a dead letter: the message, or that `payload` of it. Terminating it is the caller's.

    The same part of the same message leaves one letter however often it is
    delivered. Raises Unavailable when the letter may not be stored; then hand
    the message back.
    """
    part = message.data if payload is None else payload
    await publish_durably(
        jetstream,
        dead_letter_subject(service, consumer.durable),
        part,
        message_id=_letter_id(consumer, message, part),
        give_up_after=_GIVE_UP_AFTER,
        headers=_headers(message, reason),
    )


def _headers(message: Msg, reason: str) -> dict[str, str]:
    """Reason and origin; a header holds one line of printable ASCII."""
    line = reason.encode("ascii", "backslashreplace").decode()
    printable = "".join(char if char.isprintable() else " " for char in line)
    return {
        REASON: printable[:_REASON_MAX],
        SUBJECT: message.subject,
        STREAM: message.metadata.stream,
        SEQUENCE: str(message.metadata.sequence.stream),
        STORED_AT: str(stored_unix_ns(message)),
    }


def _letter_id(consumer: ConsumerSpec, message: Msg, part: bytes) -> str:
    """Two consumers of one stream may both give up on a message, for reasons of their own."""
    digest = hashlib.sha256(part).hexdigest()[:16]
    return f"{consumer.durable}-{message.metadata.sequence.stream}-{digest}"
