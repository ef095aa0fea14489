"""Rolling new versions out, and back when they do worse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import structlog
from busbar_errors import Conflict

from busbar_scheduler.domain.advancing import Sight, Step, advance
from busbar_scheduler.domain.comparing import Outcomes, Tally
from busbar_scheduler.domain.fleet import Deployment, Snapshot
from busbar_scheduler.domain.rollouts import Canary, track_of
from busbar_scheduler.domain.tracks import canary_replicas, ready_replicas
from busbar_scheduler.usecases.ports import Announcements, Declarations, Leadership

log = structlog.get_logger()


class Trials(Protocol):
    """What is seen of versions on trial."""

    @property
    def tally(self) -> Tally:
        """What gateways counted."""
        ...

    def current(self) -> Snapshot | None:
        """The fleet as it is, with deployments as they were declared; None when not current."""
        ...

    def missing_of(self, track: str) -> str:
        """Why a version on trial is not ready."""
        ...


@dataclass(frozen=True, slots=True)
class _Window:
    """Where a step began."""

    canary: Canary
    began_s: float
    canary_then: Outcomes
    stable_then: Outcomes


@dataclass(slots=True)
class Rollouts:
    """Looks at every version on trial once a second."""

    trials: Trials
    declarations: Declarations
    leadership: Leadership
    announcements: Announcements
    _windows: dict[str, _Window] = field(default_factory=dict[str, _Window])
    _said: dict[str, str] = field(default_factory=dict[str, str])

    def reason(self, deployment: str) -> str:
        """What a rollout waits for."""
        return self._said.get(deployment, "")

    async def look(self, now_s: float, now_unix_ms: int) -> None:
        """One round; raises Unavailable when the bus does not answer."""
        snapshot = self.trials.current()
        if snapshot is None:
            return
        tried = [one for one in snapshot.deployments if one.canary is not None]
        names = frozenset(one.name for one in tried)
        self.trials.tally.keep(names)
        for gone in self._windows.keys() - names:
            del self._windows[gone]
            self._said.pop(gone, None)
        for deployment in tried:
            step = advance(deployment, self._sight(snapshot, deployment, now_s), now_unix_ms)
            self._said[deployment.name] = step.reason
            if step.deployment != deployment and self.leadership.token() is not None:
                await self._take(deployment, step)

    async def _take(self, before: Deployment, step: Step) -> None:
        if self.declarations.deployment(before.name) != before:
            return  # an operator was faster
        try:
            await self.declarations.put_deployment(step.deployment)
        except Conflict as conflict:
            log.info("lost a race", reason=conflict.reason)
            return
        tried, now = before.canary, step.deployment.canary
        assert tried is not None
        back = step.deployment.rolled_back != before.rolled_back
        percent = now.share_percent if now else 0
        level = log.warning if back else log.info
        level(
            "version rolled back" if back else "rollout moved",
            deployment=before.name,
            bundle=tried.digest,
            phase=str(now.phase) if now else "done",
            percent=percent,
            reason=step.reason,
        )
        await self.announcements.rollout_moved(
            before.name, tried.digest, percent, step.reason, rolled_back=back
        )

    def _sight(self, snapshot: Snapshot, deployment: Deployment, now_s: float) -> Sight:
        canary, tally, name = deployment.canary, self.trials.tally, deployment.name
        assert canary is not None
        of_canary, of_stable = tally.of(name, canary.digest), tally.of(name, deployment.digest)
        wanted = max(1, snapshot.wanted(deployment))
        needed = canary_replicas(deployment, canary, wanted)
        ready = ready_replicas(snapshot, track_of(name), canary.digest)
        window = self._windows.get(name)
        if window is None or window.canary != canary or not ready:
            window = self._windows[name] = _Window(canary, now_s, of_canary, of_stable)
        return Sight(
            canary_ready=ready >= needed,
            stable_ready=ready_replicas(snapshot, name, deployment.digest) >= wanted,
            missing="" if ready >= needed else self.trials.missing_of(track_of(name)),
            observed_s=now_s - window.began_s,
            canary=of_canary - window.canary_then,
            stable=of_stable - window.stable_then,
        )
