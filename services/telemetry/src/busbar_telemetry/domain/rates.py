"""Rates from counters that only grow, over the last seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Counters:
    """What a deployment has done, counted from some beginning."""

    completed: int = 0
    failed: int = 0
    refused: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: Counters) -> Counters:
        """The sum, field by field."""
        return Counters(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def since(self, earlier: Counters) -> Counters:
        """The growth since `earlier`; a counter that went back started again from 0."""
        pairs = zip(_values(self), _values(earlier), strict=True)
        return Counters(*(now - then if now >= then else now for now, then in pairs))


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, over a window."""

    completed_per_s: float = 0.0
    failed_per_s: float = 0.0
    refused_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0


_LONGEST_WINDOW_S = 60.0
_SAMPLE_EVERY_S = 1.0
_SHORTEST_SPAN_S = 1.0


class CounterWindow:
    """The last minute of a set of counters, a sample a second."""

    def __init__(self, now_s: float) -> None:
        self.total = Counters()
        self._samples: deque[tuple[float, Counters]] = deque([(now_s, self.total)])

    @property
    def sample_count(self) -> int:
        """Samples held now."""
        return len(self._samples)

    def grow(self, growth: Counters, now_s: float) -> None:
        """Add `growth`, seen at `now_s` of a clock that never goes back."""
        self.total = self.total.plus(growth)
        last_s = self._samples[-1][0]
        if len(self._samples) == 1 or now_s - last_s >= _SAMPLE_EVERY_S:
            self._samples.append((now_s, self.total))
        else:
            self._samples[-1] = (last_s, self.total)
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - _LONGEST_WINDOW_S:
            self._samples.popleft()

    def rates(self, window_s: float, now_s: float) -> Rates:
        """Growth per second over the last `window_s`, or over as much as is known of it."""
        since_s = now_s - window_s
        at_s, then = self._samples[0]
        for sample_s, counters in self._samples:
            if sample_s > since_s:
                break
            at_s, then = sample_s, counters
        span_s = min(window_s, now_s - at_s)
        if span_s < _SHORTEST_SPAN_S:
            return Rates()
        growth = self.total.since(then)
        return Rates(*(round(value / span_s, 3) for value in _values(growth)))


def _values(counters: Counters) -> tuple[int, ...]:
    return tuple(getattr(counters, field.name) for field in fields(counters))
