"""What a dead letter says about where it comes from, enough to replay it."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from nats.aio.msg import Msg

DEAD_LETTER_TIMEOUT = timedelta(seconds=15)

REASON = "Busbar-Reason"
SUBJECT = "Busbar-Subject"
STREAM = "Busbar-Stream"
SEQUENCE = "Busbar-Sequence"
_REASON_MAX = 500


def headers_of(message: Msg, reason: str) -> dict[str, str]:
    """Reason and origin; a header holds one line of printable ASCII."""
    line = reason.encode("ascii", "backslashreplace").decode()
    printable = "".join(char if char.isprintable() else " " for char in line)
    return {
        REASON: printable[:_REASON_MAX],
        SUBJECT: message.subject,
        STREAM: message.metadata.stream,
        SEQUENCE: str(message.metadata.sequence.stream),
    }


def letter_id(message: Msg, payload: bytes) -> str:
    """The same for the same part of the same message, so that a redelivery leaves one letter."""
    digest = hashlib.sha256(payload).hexdigest()[:16]
    return f"{message.metadata.stream}-{message.metadata.sequence.stream}-{digest}"
