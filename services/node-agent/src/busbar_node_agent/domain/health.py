"""When a server that does not answer counts as hung."""

from __future__ import annotations

from dataclasses import dataclass

FAILURES_MAX = 2


@dataclass(slots=True)
class ProbeHistory:
    """Consecutive failed probes of one Triton.

    With a probe each second that may take 1.5 s, a hang is seen after 4 s at
    the latest. A probe that took far longer than its own timeout says that we
    were not scheduled, not that Triton hangs, and is not counted.
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
