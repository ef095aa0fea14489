"""Requests for a deployment that sleeps: how long they wait for it, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass

_PATIENCE_RATIO = 3.0
_PATIENCE_EXTRA_S = 10.0
"""It may take three times as long as it used to, and this, before nobody waits for it any more."""
_SOONEST_S = 1.0
"""Nobody is told to come back earlier: it may take longer than it used to."""


def patience_s(within_s: float) -> float:
    """How long requests wait for a deployment that used to be ready `within_s` after the asking."""
    return _PATIENCE_RATIO * within_s + _PATIENCE_EXTRA_S


@dataclass(slots=True)
class Waking:
    """Since when a deployment that is not ready has been asked for."""

    began: float | None = None
    """None while it is ready, or nobody has asked."""
    _last_asked: float = 0.0

    def asked(self, now: float, within_s: float) -> bool:
        """Note that somebody asks; whether that is news, because nobody had lately."""
        news = self.began is None or now - self._last_asked > patience_s(within_s)
        if news:
            self.began = now
        self._last_asked = now
        return news

    def is_overdue(self, now: float, within_s: float) -> bool:
        """Whether it takes so long that something must be wrong."""
        return self.began is not None and now - self.began > patience_s(within_s)

    def ready_in_s(self, now: float, within_s: float) -> float:
        """How long it is likely to take from now on."""
        waited_s = 0.0 if self.began is None else now - self.began
        if self.is_overdue(now, within_s):
            waited_s = 0.0  # whatever the reason is, it begins anew once that is gone
        return max(_SOONEST_S, within_s - waited_s)
