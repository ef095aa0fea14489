"""How a new version of a deployment is tried, and where that stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from busbar_scheduler.domain.manifest import Manifest

TRACK_SUFFIX = "--canary"
"""Ends the name under which a version on trial is placed; no deployment is called so."""
HALF_PERCENT = 50
"""The largest share that a version on trial is watched with: the other half is what it is
measured by."""


class Phase(StrEnum):
    """Where a rollout stands."""

    OBSERVING = "observing"
    """The new version takes a share of the requests and is watched."""
    TAKING_OVER = "taking over"
    """It was found good, or nobody watches it, and it gets as many slots as the one that serves."""
    SETTLING = "settling"
    """It serves everything while the deployment's own replicas change to its bundle."""
    LEAVING = "leaving"
    """It takes nothing new and finishes what it has in hand."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The terms on which a new version takes over."""

    canary_percent: int = 10
    """Share of requests that it begins with."""
    observe_s: int = 120
    """How long it is watched with each share."""
    max_error_ratio: float = 0.01
    """How much larger its share of failed requests may be, 0 to 1."""
    max_latency_ratio: float = 1.5
    """How many times as long its typical answer may take."""
    min_samples: int = 50
    """Requests that each version has to have had while it is watched."""
    ready_within_s: int = 600
    """How long its replicas may take to be ready."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A version that is to take over: on trial, or as soon as it is ready."""

    digest: str
    manifest: Manifest
    phase: Phase
    percent: int
    """Share of the requests that it is to take while it is watched; 0 where nobody does."""
    since_unix_ms: int
    """When it came to stand there."""

    @property
    def share_percent(self) -> int:
        """Share of the requests that it takes now, given its replicas are ready."""
        if self.phase is Phase.LEAVING:
            return 0
        return 100 if self.phase is Phase.SETTLING else self.percent

    @property
    def capacity_percent(self) -> int:
        """Share of the deployment's slots that it needs."""
        full = self.phase in {Phase.TAKING_OVER, Phase.SETTLING}
        return 100 if full else self.percent


BY_HAND = "the operator rolled it back"
"""Why a version was given up that nobody but an operator found wrong."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A version that was tried and given up; it is not tried again by itself."""

    digest: str
    reason: str
    at_unix_ms: int

    @property
    def by_hand(self) -> bool:
        """Whether somebody chose to, who may choose to have it again."""
        return self.reason == BY_HAND


def track_of(deployment: str) -> str:
    """The name under which a deployment's version on trial is placed and served."""
    return deployment + TRACK_SUFFIX


def is_track(name: str) -> bool:
    """Whether a name is that of a version on trial."""
    return name.endswith(TRACK_SUFFIX)
