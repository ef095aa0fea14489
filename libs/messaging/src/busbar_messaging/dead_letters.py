"""Putting aside what can never be handled, with enough beside it to replay it."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from busbar_messaging.connection import publish_durably
from busbar_messaging.topology import ConsumerSpec, dead_letter_subject
from busbar_messaging.watching import unix_ns_of

_GIVE_UP_AFTER = timedelta(seconds=15)

REASON = "Busbar-Reason"
SUBJECT = "Busbar-Subject"
STREAM = "Busbar-Stream"
SEQUENCE = "Busbar-Sequence"
STORED_AT = "Busbar-Stored-At"
"""When its stream stored the message first, in Unix ns by the server's clock."""
_REASON_MAX = 500


def stored_unix_ns(message: Msg) -> int:
    """When its stream stored the message; for a replayed one, when it did so the first time."""
    said = (message.headers or {}).get(STORED_AT, "")
    if said.isascii() and said.isdigit():
        return int(said)
    return unix_ns_of(message.metadata.timestamp)


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
