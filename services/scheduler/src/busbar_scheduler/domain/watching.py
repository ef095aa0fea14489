"""What was seen of a version on trial, and of the one that serves, in one step of a rollout."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_scheduler.domain.comparing import Outcomes
from busbar_scheduler.domain.rollouts import Canary

_ELAPSED_MAX_S = 2.0
"""Time in which nothing was seen counts neither for a version nor against it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Replicas of the version that serves."""

    ready: int
    """With its bundle, and taking work."""
    placed: int
    """Told to nodes that keep what they hold, with whichever bundle."""
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether all are ready that there is room for."""
        return self.ready >= max(1, min(self.placed, self.wanted))


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of both versions."""

    canary_ready: bool
    """Whether the new version has all the replicas that it needs now."""
    missing: str
    """Why the new version has not got them; empty when it has."""
    observed_s: float
    """How long both were watched in this step, while the new version was ready."""
    unready_s: float
    """For how long the new version has not been ready, without a break."""
    canary: Outcomes
    stable: Outcomes
    standing: Standing


@dataclass(slots=True)
class Watch:
    """One step of a rollout, since we saw it begin. Times are of one monotonic clock."""

    canary: Canary
    canary_then: Outcomes
    stable_then: Outcomes
    seen_at_s: float
    observed_s: float = 0.0
    unready_s: float = 0.0

    def see(
        self, now_s: float, canary: Outcomes, stable: Outcomes, standing: Standing, missing: str
    ) -> Sight:
        """Take in what the versions have counted by now, and what the new one lacks."""
        elapsed_s, self.seen_at_s = min(now_s - self.seen_at_s, _ELAPSED_MAX_S), now_s
        if missing:
            self.unready_s += elapsed_s
        else:
            self.observed_s += elapsed_s
            self.unready_s = 0.0
        if canary == self.canary_then:  # they are compared from its first request on
            self.stable_then = stable
        return Sight(
            canary_ready=not missing,
            missing=missing,
            observed_s=self.observed_s,
            unready_s=self.unready_s,
            canary=canary - self.canary_then,
            stable=stable - self.stable_then,
            standing=standing,
        )
