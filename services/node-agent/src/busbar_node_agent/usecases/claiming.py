"""When a run of an agent may take its node's name over from another one; see ADR 59."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from busbar_messaging.hearing import HearingClock

SILENT_S = 2.5
"""A run that has not written its lease for so long has lost the name to whoever asks for it."""
SILENT_UNHEARD_S = 12.0
"""The same where nothing else is heard that would show that anybody could have written: longer than
an election among NATS servers takes."""


@dataclass(frozen=True, slots=True)
class Held:
    """The lease of a node as it stands: which run of an agent has written it."""

    run_id: str
    revision: int
    released: bool = False


@dataclass(slots=True)
class Claimant:
    """One that wants the name. It is told what it hears, and asks whether it may take it.

    `yielding` are runs that do not stand in its way: itself, and one of which it knows for
    certain that it has ended. Times are seconds of one monotonic clock.
    """

    yielding: frozenset[str] = frozenset()
    held: Held | None = None
    alive: bool = False
    """Whether the holder has shown since then that it lives."""
    _known: bool = False
    _was_held: bool = False
    _since_s: float = math.inf
    _since_heard_s: float = 0.0
    _clock: HearingClock = field(default_factory=HearingClock)

    def pulse(self, now_s: float) -> None:
        """Somebody has written something on the bus."""
        self._clock.hear(now_s)

    def reads(self, held: Held | None, now_s: float) -> None:
        """What the lease says now; None when there is none."""
        self._clock.hear(now_s)
        if self._known and held == self.held:
            return
        same_run = held is not None and self.held is not None and held.run_id == self.held.run_id
        self.alive = self._known and same_run
        self._known, self.held = True, held
        self._was_held |= held is not None
        self._since_s, self._since_heard_s = now_s, self._clock.now_s

    def may_take(self, now_s: float) -> bool:
        """Whether nobody holds the name, or whoever did has fallen silent."""
        if not self._known:
            return False
        if self.held is None:
            free = not self._was_held
        else:
            free = self.held.released or self.held.run_id in self.yielding
        heard_s = self._clock.now_s - self._since_heard_s
        return free or heard_s >= SILENT_S or now_s - self._since_s >= SILENT_UNHEARD_S
