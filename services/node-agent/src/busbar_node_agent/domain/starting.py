"""When a node that starts is as good as the one whose place it takes.

Nodes are upgraded one after the other, each once the one before it is ready. It is ready only
when it serves again what it served: else the next one is stopped while it loads, and nobody serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from busbar_node_agent.domain.desired import Assignment

_FAILED_MAX, _CRASHED_MAX = 3, 2
"""In a row. From then on the scheduler looks for another node, too."""


def given_up(failed_count: int, crashed_count: int) -> bool:
    """Whether nobody should wait for a model that failed so often, though it is tried again."""
    return failed_count >= _FAILED_MAX or crashed_count >= _CRASHED_MAX


@dataclass(slots=True)
class Start:
    """What the node was told to hold as it started, until the fleet knows what became of it.

    Times are seconds of one monotonic clock. What once is not awaited never is again.
    """

    within_s: float
    """Longest that anything is awaited."""
    overdue: list[str] = field(default_factory=list[str])
    """What took longer than that."""
    _awaited: dict[str, str] = field(default_factory=dict[str, str])
    """Deployment → digest."""
    _until_s: float | None = None

    def begin(self, found: Mapping[str, Assignment], now_s: float) -> None:
        """Take over the desired state that was found; the first one counts."""
        if self._until_s is None:
            self._until_s = now_s + self.within_s
            self._awaited = {name: each.bundle_digest for name, each in found.items()}

    def reported(self, settled: Iterable[str]) -> None:
        """The fleet knows that these deployments have come up here, or were given up."""
        for name in settled:
            self._awaited.pop(name, None)

    def awaited(self, desired: Mapping[str, Assignment], now_s: float) -> list[str]:
        """Return the deployments without which the node is not ready."""
        self._awaited = {
            name: digest
            for name, digest in self._awaited.items()
            if name in desired and desired[name].bundle_digest == digest
        }
        if self._until_s is not None and now_s >= self._until_s:
            self.overdue += self._awaited
            self._awaited = {}
        return list(self._awaited)
