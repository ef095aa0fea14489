"""Virtual time: what happens next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import TypeVarTuple, Unpack

Given = TypeVarTuple("Given")


class Agenda:
    """Events in the order of their time; those of one time in the order in which they came."""

    def __init__(self, now: float) -> None:
        self.now = now
        """Seconds since the day began."""
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = itertools.count()

    def at(self, time: float, what: Callable[[Unpack[Given]], None], *given: *Given) -> None:
        """Let something happen; what is late happens now."""
        heapq.heappush(self._events, (max(time, self.now), next(self._number), what, given))

    def after(self, delay_s: float, what: Callable[[Unpack[Given]], None], *given: *Given) -> None:
        """Let something happen after a while."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._number), what, given))

    def run(self, until: float) -> int:
        """Let everything happen up to then; returns how much did."""
        events, happened = self._events, 0
        while events and events[0][0] <= until:
            self.now, _, what, given = heapq.heappop(events)
            what(*given)
            happened += 1
        self.now = max(self.now, until)
        return happened
