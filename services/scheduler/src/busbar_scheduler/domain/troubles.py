"""What gateways hold against nodes, as far as they counted it while they were heard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

_FORGET_AFTER_S = 600.0

Counts = Mapping[str, tuple[int, int]]
"""Node → attempts lost and answers garbled in a row."""


@dataclass(slots=True)
class _Report:
    run_id: str
    revision: int
    heard_at: float
    counts: Counts
    before: Counts
    """What it had counted when it was heard first, or again, less what was answered since."""


@dataclass(slots=True)
class Troubles:
    """The last report of each gateway. Times are seconds of one monotonic clock.

    What a gateway counted while nobody heard it is not held against a node: an election or
    a stall silences gateways, and costs them answers, for which no node is to blame.
    """

    fresh_s: float
    """A gateway that is silent for so long says nothing about anybody."""
    _reports: dict[str, _Report] = field(default_factory=dict[str, _Report])

    def heard(
        self, gateway_id: str, run_id: str, revision: int, counts: Counts, now: float
    ) -> None:
        """Take a report in, written as `revision`; the same one, read again, is no news."""
        for gone in [
            key for key, one in self._reports.items() if now - one.heard_at > _FORGET_AFTER_S
        ]:
            del self._reports[gone]
        last = self._reports.get(gateway_id)
        if last and last.revision == revision:
            return
        goes_on = last and last.run_id == run_id and now - last.heard_at < self.fresh_s
        before = _less(last.before, counts) if last and goes_on else counts
        self._reports[gateway_id] = _Report(run_id, revision, now, counts, before)

    def gone(self, gateway_id: str) -> None:
        """A gateway said goodbye."""
        self._reports.pop(gateway_id, None)

    def look(self, now: float) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """By node, over the gateways that are heard: attempts lost, and answers garbled."""
        lost, garbled = defaultdict[str, int](int), defaultdict[str, int](int)
        for report in self._reports.values():
            if now - report.heard_at >= self.fresh_s:
                continue
            for node, (lost_count, garbled_count) in report.counts.items():
                lost_before, garbled_before = report.before.get(node, (0, 0))
                lost[node] += lost_count - lost_before
                garbled[node] += garbled_count - garbled_before
        return lost, garbled


def _less(before: Counts, counts: Counts) -> Counts:
    """A good answer between starts a count again at zero."""
    smaller: dict[str, tuple[int, int]] = {}
    for node, (lost, garbled) in before.items():
        lost_now, garbled_now = counts.get(node, (0, 0))
        smaller[node] = (min(lost, lost_now), min(garbled, garbled_now))
    return smaller
