"""What will be asked in the next minutes, from what was asked at this time of hour, day and week.

Seasonal exponential smoothing (Winters, 1960) with a multiplicative level and no trend:
each minute of the hour and of the day, and each quarter of an hour of the week, keeps a
smoothed average of the load that it saw.
A season is believed only where it has lately been clearly better than expecting that
nothing changes; otherwise there is no forecast, and scaling only reacts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_HOUR_MIN, _DAY_MIN, _WEEK_MIN = 60, 1_440, 10_080
_QUARTER_MIN = 15
_LEAD_MIN = 3
"""How far ahead "nothing changes" is judged: about what it takes to add a replica."""
_ERROR_WEIGHT = 1 / 720
"""Errors are averaged over about half a day, so that one night does not hide the mornings."""
_JUDGED_MIN = 60
_BETTER_RATIO = 0.6
"""How much smaller than that of "nothing changes" the error of a season must be; on pure noise
a smoothed average alone comes to 0.75."""
_LEVEL_WEIGHT = 1 / 15
_LEVEL_MIN, _LEVEL_MAX = 0.5, 1.5
_PERIODS_MIN = 2


def _zeros(size: int) -> npt.NDArray[np.float32]:
    return np.zeros(size, dtype=np.float32)


@dataclass(slots=True)
class Season:
    """The load that each step of a period has seen, smoothed over the periods."""

    period_min: int
    weight: float
    step_min: int = 1
    """How many minutes share a value: their mean."""
    values: npt.NDArray[np.float32] = field(init=False)
    seen: npt.NDArray[np.uint8] = field(init=False)
    error: float = 0.0
    judged_min: int = 0
    level_expected: float = 0.0
    level_seen: float = 0.0
    _step: int = -1
    """The step that is going on, since 1970."""
    _step_mean: float = 0.0
    _step_seen: int = 0

    def __post_init__(self) -> None:
        self.values = _zeros(self.period_min // self.step_min)
        self.seen = np.zeros(len(self.values), dtype=np.uint8)

    def expected(self, minute: int) -> float | None:
        """What this minute usually sees; None before it was seen twice."""
        at = minute // self.step_min % len(self.values)
        return float(self.values[at]) if self.seen[at] >= _PERIODS_MIN else None

    def learn(self, minute: int, load: float) -> None:
        """Note what a minute saw."""
        expected = self.expected(minute)
        if expected is not None:
            error = abs(load - expected * self._level())
            self.error = _averaged(self.error, error, self.judged_min)
            self.judged_min += 1
            self.level_expected += _LEVEL_WEIGHT * (expected - self.level_expected)
            self.level_seen += _LEVEL_WEIGHT * (load - self.level_seen)
        if minute // self.step_min != self._step:
            self._smooth()
            self._step, self._step_mean, self._step_seen = minute // self.step_min, 0.0, 0
        self._step_seen += 1
        self._step_mean += (load - self._step_mean) / self._step_seen
        if (minute + 1) % self.step_min == 0:
            self._smooth()

    def _smooth(self) -> None:
        """A step is over."""
        if not self._step_seen:
            return
        at = self._step % len(self.values)
        weight = self.weight if self.seen[at] else 1.0
        self.values[at] += weight * (self._step_mean - float(self.values[at]))
        self.seen[at] = min(int(self.seen[at]) + 1, _PERIODS_MIN)
        self._step_seen = 0

    def highest(self, minute: int, ahead_min: int) -> float | None:
        """The most that the next minutes usually see, at the level of the last ones."""
        ahead = minute + 1 + np.arange(min(ahead_min, self.period_min))
        at = ahead // self.step_min % len(self.values)
        known = self.seen[at] >= _PERIODS_MIN
        if not known.any():
            return None
        return float(self.values[at][known].max()) * self._level()

    def _level(self) -> float:
        """How much busier than usual the last minutes were."""
        level = self.level_seen / self.level_expected if self.level_expected > 0 else 1.0
        return min(_LEVEL_MAX, max(_LEVEL_MIN, level))


@dataclass(slots=True)
class History:
    """What was asked of one deployment, minute by minute; minutes are counted since 1970."""

    seasons: tuple[Season, ...] = field(
        default_factory=lambda: (
            Season(_HOUR_MIN, 0.3),
            Season(_DAY_MIN, 0.5),
            Season(_WEEK_MIN, 0.5, _QUARTER_MIN),
        )
    )
    unchanged_error: float = 0.0
    """Of expecting that nothing changes."""
    unchanged_judged_min: int = 0
    _recent: deque[tuple[int, float]] = field(
        default_factory=lambda: deque[tuple[int, float]](maxlen=_LEAD_MIN)
    )

    def learn(self, minute: int, load: float) -> None:
        """Note what a whole minute saw; minutes may be left out, but never come twice."""
        if self._recent and self._recent[0][0] == minute - _LEAD_MIN:
            error = abs(load - self._recent[0][1])
            judged_min = self.unchanged_judged_min
            self.unchanged_error = _averaged(self.unchanged_error, error, judged_min)
            self.unchanged_judged_min += 1
        self._recent.append((minute, load))
        for season in self.seasons:
            season.learn(minute, load)

    def forecast(self, minute: int, ahead_min: int) -> float | None:
        """The most that is likely to be asked in the minutes after this one; None: nobody knows."""
        believed = [
            season
            for season in self.seasons
            if season.judged_min >= _JUDGED_MIN
            and season.error < _BETTER_RATIO * self.unchanged_error
        ]
        if not believed:
            return None
        return min(believed, key=lambda season: season.error).highest(minute, ahead_min)


def _averaged(average: float, value: float, count: int) -> float:
    """A plain average at first, then one that forgets."""
    return average + max(_ERROR_WEIGHT, 1 / (count + 1)) * (value - average)
