"""Whether a new version does worse than the one that serves, by what came of their requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.rollouts import Rollout

_FORGET_AFTER_S = 600.0
"""A gateway that was silent for so long does not come back under its name."""
_Z = 3.09
"""One in a thousand, one-sided: it is looked at again and again while a version is watched."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the attempts of one version ended, and the sums over ln(latency) of its answers."""

    answered: int = 0
    failed: int = 0
    timed: int = 0
    log_latency_sum: float = 0.0
    log_latency_square_sum: float = 0.0

    def __add__(self, more: Outcomes) -> Outcomes:
        return self._with(more, 1)

    def __sub__(self, less: Outcomes) -> Outcomes:
        return self._with(less, -1)

    def _with(self, other: Outcomes, sign: int) -> Outcomes:
        return Outcomes(
            self.answered + sign * other.answered,
            self.failed + sign * other.failed,
            self.timed + sign * other.timed,
            self.log_latency_sum + sign * other.log_latency_sum,
            self.log_latency_square_sum + sign * other.log_latency_square_sum,
        )

    @property
    def count(self) -> int:
        """Requests that it had."""
        return self.answered + self.failed

    @property
    def log_latency(self) -> tuple[float, float]:
        """Mean of ln(latency), and the variance of that mean."""
        mean = self.log_latency_sum / self.timed
        spread = max(0.0, self.log_latency_square_sum / self.timed - mean * mean)
        return mean, spread / max(1, self.timed - 1)


def worse(canary: Outcomes, stable: Outcomes, terms: Rollout) -> str:
    """Why the canary is worse than the terms allow; empty while that is not shown.

    Errors: the lower bound of the difference of both shares, from Wilson's intervals (Newcombe
    1998, method 10). Latency: the difference of the means of ln(latency) with Welch's standard
    error, which compares typical answers and is not thrown by one slow one.
    """
    if not canary.count or not stable.count:
        return ""
    if _surely_more(canary, stable) > terms.max_error_ratio:
        return (
            f"{canary.failed} of its {canary.count} requests failed, and {stable.failed} of "
            f"{stable.count} of the version that serves"
        )
    if min(canary.timed, stable.timed) < max(2, terms.min_samples):
        return ""
    (slow, slow_variance), (usual, variance) = canary.log_latency, stable.log_latency
    surely = slow - usual - _Z * math.sqrt(slow_variance + variance)
    if surely > math.log(terms.max_latency_ratio):
        return (
            f"its typical answer takes {math.exp(slow - usual):.1f} times as long as that of the "
            f"version that serves; {terms.max_latency_ratio:g} times are allowed"
        )
    return ""


def _surely_more(canary: Outcomes, stable: Outcomes) -> float:
    """By how much the canary's share of failures is larger at least."""
    high, low = canary.failed / canary.count, stable.failed / stable.count
    lowest, _ = _wilson(high, canary.count)
    _, highest = _wilson(low, stable.count)
    return high - low - math.hypot(high - lowest, highest - low)


def _wilson(share: float, count: int) -> tuple[float, float]:
    square = _Z * _Z / count
    middle = share + square / 2
    half = _Z * math.sqrt(share * (1 - share) / count + square / count / 4)
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


Versions = Mapping[tuple[str, str], Outcomes]
"""By deployment and digest."""


@dataclass(frozen=True, slots=True)
class _Report:
    run_id: str
    counted: Versions
    at_s: float


@dataclass(slots=True)
class Tally:
    """What all gateways have counted since they were first heard of."""

    _last: dict[str, _Report] = field(default_factory=dict[str, _Report])
    _total: dict[tuple[str, str], Outcomes] = field(default_factory=dict[tuple[str, str], Outcomes])

    def heard(self, gateway_id: str, run_id: str, counted: Versions, now_s: float) -> None:
        """Take a report in; what it counted before we listened is not news."""
        before = self._last.get(gateway_id)
        self._last[gateway_id] = _Report(run_id, counted, now_s)
        for gone in [key for key, one in self._last.items() if now_s - one.at_s > _FORGET_AFTER_S]:
            del self._last[gone]
        if before is None:
            return
        known = before.counted if before.run_id == run_id else {}
        for key, now in counted.items():
            then = known.get(key, Outcomes())
            began_anew = now.count < then.count
            self._total[key] = self.of(*key) + (now if began_anew else now - then)

    def gone(self, gateway_id: str) -> None:
        """A gateway said goodbye."""
        self._last.pop(gateway_id, None)

    def of(self, deployment: str, digest: str) -> Outcomes:
        """Everything that one version was counted with."""
        return self._total.get((deployment, digest), Outcomes())

    def keep(self, deployments: frozenset[str]) -> None:
        """Forget what is not rolled out any more."""
        for key in [key for key in self._total if key[0] not in deployments]:
            del self._total[key]
