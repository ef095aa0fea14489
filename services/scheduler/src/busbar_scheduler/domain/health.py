"""How far each node can be relied on, from how long it has been silent or draining.

Suspect fast, evict slowly: a suspect node gets no new work at once, but what it
holds is placed elsewhere only after a minute, so that a blip moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from busbar_scheduler.domain.fleet import Health

EVICT_AFTER = timedelta(seconds=60)
"""Silent or draining for this long, a node loses what it holds."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of a node's life, as durations up to now."""

    silent_s: float
    draining_s: float | None
    """Since it began to drain; None when it does not."""
    ready: bool
    """Whether its agent says that the node takes work."""
    reported: bool
    """Whether it has ever reported what it has."""
    same_run: bool
    """Whether the report belongs to the run of the agent that holds the lease."""
    given_up: bool = True
    """Whether it may lose what it holds once it is silent for long; see `evicting`."""


def judge(signs: Signs, suspect_after: timedelta) -> Health:
    """The worst that the signs say."""
    evict_s = EVICT_AFTER.total_seconds()
    draining_s = signs.draining_s if signs.draining_s is not None else -1.0
    verdicts = (
        (signs.silent_s >= evict_s and signs.given_up, Health.LOST),
        (not signs.reported, Health.UNREPORTED),
        (draining_s >= evict_s, Health.EVICTED),
        (signs.silent_s >= suspect_after.total_seconds(), Health.SUSPECT),
        (draining_s >= 0, Health.DRAINING),
        (not signs.same_run, Health.RESTARTING),
        (not signs.ready, Health.NOT_READY),
    )
    return next((health for applies, health in verdicts if applies), Health.OK)


def until_next_change_s(signs: Signs, suspect_after: timedelta) -> float:
    """Seconds until time alone changes the judgement; infinite when it cannot."""
    evict_s = EVICT_AFTER.total_seconds()
    ahead = [
        suspect_after.total_seconds() - signs.silent_s,
        evict_s - signs.silent_s,
        evict_s - signs.draining_s if signs.draining_s is not None else -1.0,
    ]
    return min((left for left in ahead if left > 0), default=float("inf"))
