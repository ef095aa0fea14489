"""When a server that does not answer counts as hung."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

FAILURES_MAX = 3
STILL_MAX_S = 1.5


@dataclass(slots=True)
class ProbeHistory:
    """Consecutive failed probes of one Triton.

    With a probe each second, and one after the other of 0.8 s once one was not answered, a hang
    is seen after 3.4 s at the latest. A probe that took far longer than its own timeout says that
    we were not scheduled, not that Triton hangs, and is not counted.
    """

    timeout_s: float
    lag_s: float = 0.5
    failures: int = 0

    def succeeded(self) -> None:
        """The server answered."""
        self.failures = 0

    def failed(self, took_s: float) -> None:
        """The server did not answer, and it took us `took_s` seconds to find out."""
        if took_s <= self.timeout_s + self.lag_s:
            self.failures += 1

    @property
    def hung(self) -> bool:
        """Whether it failed often enough in a row."""
        return self.failures >= FAILURES_MAX


@dataclass(slots=True)
class Standstill:
    """Which processes of one Triton are stopped, and since when.

    Triton answers probes although the process of a model is stopped, and waits for it for
    ever. However long a model works or waits for something, its process is not stopped by that,
    so nothing that only takes its time is mistaken for a hang.
    """

    _since_s: dict[int, float] = field(default_factory=dict[int, float])

    def look(self, stopped: Collection[int], now_s: float) -> int:
        """A process that has been stopped for too long; 0 for none. To be told each second."""
        self._since_s = {pid: self._since_s.get(pid, now_s) for pid in stopped}
        overdue = (pid for pid, since in self._since_s.items() if now_s - since >= STILL_MAX_S)
        return next(overdue, 0)
