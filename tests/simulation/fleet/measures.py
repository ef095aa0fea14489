"""What a day came to."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from simulation.fleet.work import Outcome, Request

BUCKETS = 96
"""Parts of the day that are drawn."""


@dataclass(slots=True)
class Part:
    """One part of the day: what happened in it, and how things stood in it on the average."""

    arrived: int = 0
    served: int = 0
    refused: int = 0
    failed: int = 0
    queued_s: float = 0.0
    """The longest that anybody waited for its turn."""
    samples: int = 0
    slots: int = 0
    busy: int = 0
    draw_w: float = 0.0


@dataclass(slots=True)
class Measures:
    """Counts of one day, and its parts."""

    lasts_s: float
    parts: list[Part] = field(default_factory=list[Part])
    outcomes: Counter[Outcome] = field(default_factory=Counter[Outcome])
    queue_s: array[float] = field(default_factory=lambda: array("d"))
    """Of everybody who got a turn, how long it took."""
    stream_s: array[float] = field(default_factory=lambda: array("d"))
    """Of everything that was published, how long it waited for a node."""
    lost: int = 0
    not_taken: int = 0
    """Sent to another region because nobody took it where it was."""
    tried_again: int = 0
    obsolete: int = 0
    moves: int = 0
    """Replicas that were placed anew because they went from elsewhere."""
    loads: int = 0
    plans: int = 0
    resumed: int = 0

    def __post_init__(self) -> None:
        self.parts = [Part() for _ in range(BUCKETS)]

    def part(self, at_s: float) -> Part:
        """The part of the day that a moment is in; what comes after is in the last."""
        return self.parts[min(BUCKETS - 1, int(at_s / self.lasts_s * BUCKETS))]

    def admitted(self, waited_s: float, at_s: float) -> None:
        """Somebody got its turn."""
        self.queue_s.append(waited_s)
        part = self.part(at_s)
        part.queued_s = max(part.queued_s, waited_s)

    def ended(self, request: Request, outcome: Outcome) -> None:
        """A request has ended."""
        self.outcomes[outcome] += 1
        part = self.part(request.ended_at)
        part.served += outcome is Outcome.SERVED
        part.refused += outcome.refused
        part.failed += not outcome.refused and outcome is not Outcome.SERVED
        if outcome is Outcome.SERVED:
            self.resumed += request.delivered_tokens > 0

    def sample(self, at_s: float, slots: int, busy: int, draw_w: float) -> None:
        """How things stand."""
        part = self.part(at_s)
        part.samples += 1
        part.slots += slots
        part.busy += busy
        part.draw_w += draw_w


def percentile(values: array[float], percent: float) -> float:
    """That percentile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
