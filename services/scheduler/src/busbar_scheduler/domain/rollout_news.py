"""What is told of rollouts: each step once, whoever took it."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_scheduler.domain.fleet import Deployment
from busbar_scheduler.domain.rollouts import Phase


@dataclass(frozen=True, slots=True)
class Moved:
    """A version that is on trial, or was until now, came to stand elsewhere."""

    deployment: str
    digest: str
    phase: Phase
    percent: int
    """Share of the requests that it takes from now on."""
    reason: str
    rolled_back: bool


def news_of(before: Deployment | None, after: Deployment, reason: str = "") -> Moved | None:
    """What there is to tell of a change; the reason of one by hand is seen from the change."""
    was, now = before.canary if before else None, after.canary
    if now is None:
        return None  # that it leaves was told
    if was and (was.digest, was.phase, was.percent) == (now.digest, now.phase, now.percent):
        return None
    back = after.rolled_back if after.rolled_back != (before and before.rolled_back) else None
    by_hand = "another version was declared" if now.phase is Phase.LEAVING else "it was declared"
    return Moved(
        deployment=after.name,
        digest=now.digest,
        phase=now.phase,
        percent=now.share_percent,
        reason=reason or (back.reason if back else by_hand),
        rolled_back=back is not None and back.digest == now.digest,
    )
