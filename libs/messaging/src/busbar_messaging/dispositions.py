"""What becomes of a message whose handler failed, decided once for every consumer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from busbar_errors import Conflict, NotFound, Rejected, Unavailable
from google.protobuf.message import DecodeError, Message

M = TypeVar("M", bound=Message)

BUG_DELIVERIES_MAX = 5
_NAK_DELAY_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Hand it back; the server delivers it again after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Publish it to the DLQ with `reason`, then terminate it."""

    reason: str


def dispose(error: Exception, deliveries: int) -> Retry | DeadLetter:
    """Decide from the failure and how often the message was delivered (from 1)."""
    backoff_s = min(_NAK_DELAY_MAX_S, 0.25 * 2 ** min(deliveries - 1, 10))
    if isinstance(error, (Rejected, NotFound)):
        return DeadLetter(error.reason)
    if isinstance(error, (Conflict, Unavailable)):
        return Retry(backoff_s)
    if deliveries >= BUG_DELIVERIES_MAX:
        return DeadLetter(f"gave up after {deliveries} deliveries: {error!r}")
    return Retry(backoff_s)


def decode(message_type: type[M], data: bytes) -> M:
    """Parse `data`; raise Rejected when it is not a `message_type`."""
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise Rejected(f"not a {message_type.DESCRIPTOR.full_name}: {error}") from error
    return message
