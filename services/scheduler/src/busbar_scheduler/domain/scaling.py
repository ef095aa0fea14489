"""How many replicas demand asks for: up at once, down slowly, never beyond the declared bounds.

The window and the rate of growth are those of Knative's autoscaler and of Kubernetes'
defaults, the wait before going down is declared; see docs/decisions/0031.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from busbar_scheduler.domain.demand import Asked
from busbar_scheduler.domain.economy import loading_s
from busbar_scheduler.domain.fleet import Demand, Deployment
from busbar_scheduler.domain.forecasting import History

_SHORT_S, _LONG_S = 6.0, 60.0
"""What is asked is averaged over these: Knative's panic window and its stable one."""
_DRAIN_S = 5.0
"""How long a queue may take to be worked off, or as long as loading takes, before it counts as
more replicas."""
_FREE_RATIO = 0.2
"""Part of the slots, in whole slots, that is left free for the next requests."""
_HYSTERESIS_RATIO = 1.1
"""A replica goes only if the others could carry so much more than what is asked."""
_UP_EVERY_S, _UP_LEAST = 15.0, 4
"""Within this time it at most doubles, or grows by this where that is more."""
_DOWN_EVERY_RATIO, _DOWN_PARTS = 0.2, 4
"""Each fifth of the wait at most a fourth of the replicas goes."""
_LOADINGS_MIN = 2
"""The wait is as long as loading takes so often: who was told to come back finds it ready."""
_WAKING_RATIO, _WAKING_EXTRA_S = 3.0, 10.0
"""What was woken may take so many times as long as expected, and this, to be ready; gateways let
requests wait as long."""
_ELAPSED_MAX_S = 2.0
"""Time in which nothing was seen does not count as time in which nothing was asked."""
_RATE_HALF_LIFE_S = 60.0
_RATE_CHANGED_RATIO = 1.25
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a deployment at one moment."""

    asked: Asked
    placed: int
    """Replicas that nodes are told to hold."""
    ready: int
    described: bool
    """Whether gateways know its tensors, which they do once a replica was ready."""


def capacity(replicas: int, slots: int) -> int:
    """How many requests at once so many replicas are meant to carry."""
    return replicas * slots - math.floor(_FREE_RATIO * replicas * slots)


def replicas_for(load: float, slots: int) -> int:
    """The fewest replicas that are meant to carry so many requests at once."""
    load -= _TOLERANCE
    if load <= 0:
        return 0
    found = max(1, math.floor((load - 1) / ((1 - _FREE_RATIO) * slots)))
    while capacity(found, slots) < load:
        found += 1
    return found


@dataclass(slots=True)
class Average:
    """The mean of what was seen lately, each sight for as long as it held."""

    _sights: deque[tuple[float, float, float]] = field(
        default_factory=deque[tuple[float, float, float]]
    )
    """When, how long, what."""
    _sum: float = 0.0
    _time_s: float = 0.0
    _added: int = 0

    def see(self, now: float, length_s: float, seen: float, window_s: float) -> float:
        """Add one and forget what is older than the window; the mean of the rest."""
        length_s = max(length_s, _TOLERANCE)
        self._sights.append((now, length_s, seen))
        self._sum += length_s * seen
        self._time_s += length_s
        while self._sights[0][0] <= now - window_s:
            _, length_s, seen = self._sights.popleft()
            self._sum -= length_s * seen
            self._time_s -= length_s
        self._added += 1
        if self._added % _LONG_S == 0:  # so that rounding errors do not pile up
            self._sum = sum(length * value for _, length, value in self._sights)
            self._time_s = sum(length for _, length, _ in self._sights)
        return self._sum / self._time_s


@dataclass(slots=True)
class Scale:
    """What was asked of one deployment lately, and what follows from it."""

    wanted: int
    """Replicas; within the bounds as of the last step."""
    reason: str = "nothing was asked yet"
    history: History = field(default_factory=History)
    measured_loading_s: float | None = None
    """From being told to hold the first replica to it being ready; None before that was seen."""
    service_s: float = 0.0
    """What one request takes; 0 where it is not known."""
    now: float = 0.0
    """Seconds that this deployment was watched."""
    load: float = 0.0
    """Requests in flight over the long window."""
    burst: float = 0.0
    """The same over the short one; and waiting ones as far as they need slots of their own."""
    _long: Average = field(default_factory=Average)
    _short: Average = field(default_factory=Average)
    _queue: Average = field(default_factory=Average)
    _kept: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    """When, and how many were of use then: falling numbers, so that the first is the most."""
    _grown_from: tuple[float, int] | None = None
    _shrunk_at: float = -math.inf
    _busy_s: float = 0.0
    _done: float = 0.0
    _minute: int | None = None
    _minute_load: float = 0.0
    _foreseen: float | None = None
    _loading_since: float | None = None
    _woken_at: float | None = 0.0
    """When something was wanted again, until that is ready; what is there at the start counts."""
    _placed: int | None = None
    _told: Demand | None = None

    def step(self, deployment: Deployment, sight: Sight, elapsed_s: float, minute: int) -> Demand:
        """Decide again, `elapsed_s` after the last time; `minute` counts since 1970."""
        first = not self._kept
        elapsed_s = min(elapsed_s, _ELAPSED_MAX_S)
        self.now += elapsed_s
        self._see(deployment, sight, elapsed_s)
        self._time_loading(sight, elapsed_s)
        if sight.ready or not self.wanted:
            self._woken_at = None
        self._foresee(deployment, minute)
        most, slots = deployment.most, deployment.manifest.slots
        self.wanted = min(most, max(deployment.replicas, self.wanted))
        if first:  # after a restart nothing goes before it was watched for the declared time
            self._keep(self.wanted, deployment)
        if self.burst < _TOLERANCE and not sight.asked.anything:
            self.load = 0.0  # nobody asks: the tail of the average keeps nothing awake
        needed, why = self._needed(deployment, sight, slots)
        headroom = replicas_for(self.load * _HYSTERESIS_RATIO, slots)
        self._keep(min(most, max(needed, headroom)), deployment)
        self._settle(deployment, min(most, max(deployment.replicas, needed)), why)
        return self._demand(deployment, slots)

    def loading_s(self, deployment: Deployment) -> float:
        """How long it takes to be ready once it is wanted: measured, estimated before that."""
        if self.measured_loading_s is None:
            return float(loading_s(deployment, cached=False))
        return self.measured_loading_s

    def wait_s(self, deployment: Deployment) -> float:
        """How long replicas stay that are of no use any more: as declared, or as it must be."""
        return max(deployment.scale_down_after_s, _LOADINGS_MIN * self.loading_s(deployment))

    def _is_waking(self, deployment: Deployment) -> bool:
        """Whether what was asked for is not ready yet, and may still be going to be."""
        if self._woken_at is None:
            return False
        within_s = max(self.loading_s(deployment), loading_s(deployment, cached=False))
        return self.now - self._woken_at <= _WAKING_RATIO * within_s + _WAKING_EXTRA_S

    def _see(self, deployment: Deployment, sight: Sight, elapsed_s: float) -> None:
        asked = sight.asked
        fading = 0.5 ** (elapsed_s / _RATE_HALF_LIFE_S)
        self._busy_s = self._busy_s * fading + asked.in_flight * elapsed_s
        self._done = self._done * fading + asked.completed
        if self._done >= 1:
            self.service_s = self._busy_s / self._done
        window_s = max(_SHORT_S, min(_LONG_S, self.wait_s(deployment)))
        self.load = self._long.see(self.now, elapsed_s, asked.in_flight, window_s)
        in_flight = self._short.see(self.now, elapsed_s, asked.in_flight, _SHORT_S)
        queued = self._queue.see(self.now, elapsed_s, asked.queued, _SHORT_S)
        drain_s = max(_DRAIN_S, self.loading_s(deployment))
        share = min(1.0, self.service_s / drain_s) if self.service_s else 1.0
        self.burst = in_flight + queued * share

    def _time_loading(self, sight: Sight, elapsed_s: float) -> None:
        if self._placed == 0 and sight.placed:
            self._loading_since = self.now - elapsed_s
        if not sight.placed:
            self._loading_since = None
        if sight.ready and self._loading_since is not None:
            took_s, self._loading_since = self.now - self._loading_since, None
            known_s = took_s if self.measured_loading_s is None else self.measured_loading_s
            self.measured_loading_s = (known_s + took_s) / 2
        self._placed = sight.placed

    def _foresee(self, deployment: Deployment, minute: int) -> None:
        if self._minute is not None and minute > self._minute:
            self.history.learn(self._minute, self._minute_load)
            self._minute_load = 0.0
            ahead_min = math.ceil(self.loading_s(deployment) / 60) + 1
            self._foreseen = self.history.forecast(minute - 1, ahead_min)
        self._minute = minute
        self._minute_load = max(self._minute_load, self.load, self.burst * (1 - _FREE_RATIO))

    def _needed(self, deployment: Deployment, sight: Sight, slots: int) -> tuple[int, str]:
        """What is of use now, and why."""
        needed = replicas_for(self.load, slots)
        why = f"{self.load:.1f} requests at once, {slots} slots a replica"
        at_once = math.ceil((self.burst - _TOLERANCE) / slots)
        if at_once > needed:
            needed, why = at_once, f"{self.burst:.1f} requests at once, {slots} slots a replica"
        if not needed and sight.asked.anything:
            needed, why = 1, "somebody asks"
        if not needed and self._is_waking(deployment):
            needed, why = 1, "it was asked for, and is not ready yet"
        foreseen = replicas_for(self._foreseen or 0.0, slots)
        if foreseen > needed:
            needed, why = foreseen, f"{self._foreseen:.1f} requests at once are usual soon"
        if not sight.described and deployment.most and not needed:
            needed, why = 1, "loaded once, to learn its tensors and how long that takes"
        return needed, why

    def _keep(self, useful: int, deployment: Deployment) -> None:
        horizon = self.now - self.wait_s(deployment)
        while self._kept and self._kept[0][0] < horizon:
            self._kept.popleft()
        while self._kept and self._kept[-1][1] <= useful:
            self._kept.pop()
        self._kept.append((self.now, useful))

    def _settle(self, deployment: Deployment, needed: int, why: str) -> None:
        wait_s = self.wait_s(deployment)
        if needed > self.wanted:
            self._grow(needed, why)
            return
        kept = max(deployment.replicas, self._kept[0][1])
        if kept >= self.wanted:
            self.reason = why
            if needed < self.wanted:
                left_s = max(0.0, self._kept[0][0] + wait_s - self.now)
                self.reason = f"{why}; more was of use lately, so it stays for {left_s:.0f} s"
            elif needed == deployment.replicas and not self.load:
                self.reason = "nothing is asked"
            return
        if self.now - self._shrunk_at < _DOWN_EVERY_RATIO * wait_s:
            return
        self._shrunk_at = self.now
        self.wanted = max(kept, self.wanted - max(1, self.wanted // _DOWN_PARTS))
        self.reason = f"no more were of use for {wait_s:.0f} s"

    def _grow(self, needed: int, why: str) -> None:
        if self._grown_from is None or self.now - self._grown_from[0] >= _UP_EVERY_S:
            self._grown_from = (self.now, self.wanted)
        if not self.wanted:
            self._woken_at = self.now
        base = self._grown_from[1]
        self.wanted = max(self.wanted, min(needed, max(2 * base, base + _UP_LEAST)))
        self.reason = why if self.wanted == needed else f"{why}; {needed} are on their way"

    def _demand(self, deployment: Deployment, slots: int) -> Demand:
        within_ms = _two_digits(self.loading_s(deployment) * 1_000)
        # What wakes up was asked for: whether it pays is seen once it serves.
        weighed = self.service_s > 0 and (deployment.replicas > 0 or self.wanted > 1)
        per_h = 3_600 / self.service_s if weighed else 0.0
        told, rate = self._told, max(self.load, self.burst) * per_h
        changed = (
            told is None
            or (told.replicas, told.loading_ms) != (self.wanted, within_ms)
            or bool(told.requests_per_replica_h) != weighed
            or _differ(told.requests_per_h, rate)
            or _differ(told.requests_per_replica_h, per_h * slots)
        )
        if changed or told is None:
            # Plans are made anew where demand changes, so it changes by steps.
            told = Demand(self.wanted, round(rate), math.ceil(per_h * slots), within_ms)
            self._told = told
        return told


def _differ(told: float, now: float) -> bool:
    low, high = sorted((told, now))
    return high > 1 and high > low * _RATE_CHANGED_RATIO


def _two_digits(value: float) -> int:
    """Rounded up, so that what is nearly the same is the same."""
    unit = 10 ** max(0, math.floor(math.log10(max(value, 1.0))) - 1)
    return math.ceil(value / unit - _TOLERANCE) * unit
