"""The kinds of failure that every edge and every consumer tells apart.

What is none of these is a bug. How each kind is answered on the bus, over gRPC
and over HTTP is written once in each edge; see docs/decisions/0004.
"""

from __future__ import annotations


class BusbarError(Exception):
    """A failure with a reason that may be shown to whoever asked."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Rejected(BusbarError):
    """The request can never succeed as it stands; the reason says what to change."""


class NotFound(BusbarError):
    """The thing named does not exist, or not for whoever asks."""


class Conflict(BusbarError):
    """Somebody else changed it first; read again, then retry."""


class Unavailable(BusbarError):
    """It cannot be done now; retrying after `retry_after_s` seconds may help."""

    def __init__(self, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
