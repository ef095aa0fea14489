"""Unix time as the bus has it, measured by this gateway's own heartbeats.

Prices, the expiry of keys, deadlines at nodes and what other gateways left
behind are all compared with times that others wrote. A gateway whose clock is
off would charge by the wrong prices and send work that is over before it
begins, so it tells the time by the server's clock as soon as the two disagree.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger()

CLOCKS_APART_MAX_S = 2.0
"""Up to here our own clock holds: less than this may be the way to the server and back."""
ROUND_TRIP_MAX_S = 0.5
"""A heartbeat that took longer measures the way rather than the clock."""
_NS_PER_S = 1_000_000_000


class BusClock:
    """`sent` and `echoed` are told of each heartbeat; who asks for the time does no I/O."""

    def __init__(
        self,
        *,
        unix_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        observe: Callable[[float], None] = lambda _ahead_s: None,
    ) -> None:
        """`observe` gets how many seconds our clock is ahead of the bus whenever it is measured."""
        self._own_ns = unix_ns
        self._monotonic = monotonic
        self._observe = observe
        self._ahead_ns = 0
        self._sent: tuple[int, float] = (0, 0.0)
        self.measured = False

    def unix_ns(self) -> int:
        """Nanoseconds since 1970 by the bus's clock, or by ours while the two agree."""
        return self._own_ns() - self._ahead_ns

    def unix_s(self) -> float:
        """Seconds since 1970, likewise."""
        return self.unix_ns() / _NS_PER_S

    def sent(self, mark: int) -> None:
        """A heartbeat leaves that says `mark`, a number that no other one says."""
        self._sent = (mark, self._monotonic())

    def echoed(self, mark: int, stored_unix_ns: int) -> None:
        """The server stored the heartbeat that said `mark` at this time by its clock."""
        sent_mark, sent_s = self._sent
        round_trip_s = self._monotonic() - sent_s
        if mark != sent_mark or not stored_unix_ns or round_trip_s > ROUND_TRIP_MAX_S:
            return
        self.measured = True
        ahead_ns = self._own_ns() - round(round_trip_s * _NS_PER_S / 2) - stored_unix_ns
        self._observe(ahead_ns / _NS_PER_S)
        if abs(ahead_ns) <= CLOCKS_APART_MAX_S * _NS_PER_S:
            ahead_ns = 0
        if bool(ahead_ns) != bool(self._ahead_ns):
            log.warning("clock off", ahead_s=round(ahead_ns / _NS_PER_S, 3))
        self._ahead_ns = ahead_ns
