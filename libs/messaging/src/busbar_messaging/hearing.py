"""A clock for silence, which goes only while something is heard.

An election among NATS servers, a lost watch or a broken connection silences everybody
at once, and a wall clock would hold that against each of them. This one is driven by
what arrives on one watch: what the others write, and a pulse that somebody writes there
whatever becomes of the others. Where nothing arrives nobody could have been heard, and
nobody's silence grows. It goes on a little after the first thing is heard again, for
the others find back by and by. See docs/decisions/0046.
"""

from __future__ import annotations

import math

DEAF_AFTER_S = 2.5
"""Nothing heard for longer than this: it is the bus that is silent. More than two pulses, less
than what makes a node suspect."""
GRACE_S = 3.0
"""After that, how long the others may take to be heard again: a reconnection and two heartbeats."""


class HearingClock:
    """Seconds in which somebody could have been heard. Both ways in take one monotonic clock."""

    def __init__(self) -> None:
        self._counted_s = 0.0
        self._heard_at_s = -math.inf
        self._goes_from_s = math.inf

    def hear(self, now_s: float) -> float:
        """Something arrived; returns for how long before that nothing could, 0 when all is well."""
        silent_s, had_heard = now_s - self._heard_at_s, self.has_heard
        self._heard_at_s = now_s
        if not had_heard:
            self._goes_from_s = now_s
            return 0.0
        if silent_s > DEAF_AFTER_S:
            self._goes_from_s = now_s + GRACE_S
            return silent_s
        counted_s = now_s - max(self._goes_from_s, now_s - silent_s)
        self._counted_s += max(0.0, counted_s)
        return 0.0

    @property
    def now_s(self) -> float:
        """What it shows."""
        return self._counted_s

    def shows_at_s(self, counted_s: float) -> float:
        """When, on the clock that it was told, it shows this at the earliest."""
        return max(self._heard_at_s, self._goes_from_s) + counted_s - self._counted_s

    @property
    def has_heard(self) -> bool:
        """Whether anything was ever heard."""
        return not math.isinf(self._heard_at_s)

    def is_deaf(self, now_s: float) -> bool:
        """Whether nothing has been heard for so long that nothing can be."""
        return now_s - self._heard_at_s > DEAF_AFTER_S
