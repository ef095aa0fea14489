"""Whose joules: a GPU's energy counter shared among the attempts that kept it busy.

Between two readings of the counter each attempt is charged for its share of the
busy time. Attempts that end between readings are charged at the rate of the
reading before, and what was charged too much then is carried into the next. What
was drawn while nothing was worked on belongs to nobody.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EnergyShares:
    """Integral of energy per busy slot. Times are seconds of one monotonic clock."""

    read_at_s: float
    counter_mj: float
    busy: int = 0
    _level_at_s: float = 0.0
    _level_mj: float = 0.0
    _rate_mj_per_s: float = 0.0
    _active_s: float = 0.0
    _busy_s: float = 0.0
    _charged_mj: float = 0.0
    _overcharged_mj: float = 0.0

    def __post_init__(self) -> None:
        self._level_at_s = self.read_at_s

    def began(self, now_s: float) -> float:
        """An attempt starts; keep the returned level for `ended`."""
        self._advance(now_s)
        self.busy += 1
        return self._level_mj

    def ended(self, now_s: float, began_level_mj: float) -> int:
        """The attempt's energy in millijoules."""
        self._advance(now_s)
        self.busy = max(0, self.busy - 1)
        return max(0, round(self._level_mj - began_level_mj))

    def read(self, now_s: float, counter_mj: float) -> None:
        """The counter was read; one that ran backwards was reset and tells nothing."""
        self._advance(now_s)
        window_s = now_s - self.read_at_s
        drawn_mj = max(0.0, counter_mj - self.counter_mj)
        if window_s > 0.0 and self._busy_s > 0.0:
            self._settle(drawn_mj * min(1.0, self._active_s / window_s))
        self.counter_mj, self.read_at_s = counter_mj, now_s
        self._active_s = self._busy_s = self._charged_mj = 0.0

    def _settle(self, used_mj: float) -> None:
        due_mj = used_mj - self._overcharged_mj - self._charged_mj
        self._overcharged_mj = max(0.0, -due_mj)
        self._rate_mj_per_s = max(0.0, used_mj - self._overcharged_mj) / self._busy_s
        if due_mj > 0.0 and self.busy:
            self._level_mj += due_mj / self.busy

    def _advance(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._level_at_s)
        self._level_at_s += passed_s
        if not self.busy:
            return
        self._active_s += passed_s
        self._busy_s += passed_s * self.busy
        self._level_mj += self._rate_mj_per_s * passed_s
        self._charged_mj += self._rate_mj_per_s * passed_s * self.busy
