"""Unix time as the bus has it, read off the work that arrives.

Deadlines are written by gateways, which go by the bus's clock; a node whose own clock is an hour
ahead would take all work for expired. Every delivery says when the stream stored it. What waited
there for less than any other came almost at once, so that moment and our own then are the same.
Work that has waited longer than all of its time's is given more time than it has, which costs
nobody anything: its gateway ends it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_S = 30.0
"""The shortest wait of the last one to two of these counts, for clocks drift and are set."""


@dataclass(slots=True)
class BusTime:
    """`now_s` is a monotonic clock, the same for all calls."""

    _apart_s: float = math.inf
    """Least of our clock minus the stream's in this window, and in the one before."""
    _before_s: float = math.inf
    _since_s: float = -math.inf

    def stored(self, unix_s: float, now_s: float) -> None:
        """Something arrives now that the stream stored at that time by its own clock."""
        if now_s - self._since_s > WINDOW_S:
            recent = now_s - self._since_s <= 2 * WINDOW_S
            self._before_s = self._apart_s if recent else math.inf
            self._apart_s, self._since_s = math.inf, now_s
        self._apart_s = min(self._apart_s, now_s - unix_s)

    def unix_s(self, now_s: float, otherwise: float) -> float:
        """The bus's time now; `otherwise` when nothing has ever arrived."""
        apart_s = min(self._apart_s, self._before_s)
        return otherwise if math.isinf(apart_s) else now_s - apart_s
