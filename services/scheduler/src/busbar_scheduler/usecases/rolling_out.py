"""Rolling new versions out, and back when they do worse."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from busbar_errors import Conflict

from busbar_scheduler.domain.advancing import Step, advance
from busbar_scheduler.domain.comparing import Tally
from busbar_scheduler.domain.fleet import Deployment, Snapshot
from busbar_scheduler.domain.rollout_news import news_of
from busbar_scheduler.domain.rollouts import track_of
from busbar_scheduler.domain.tracks import (
    canary_replicas,
    placed_replicas,
    ready_replicas,
    unready,
)
from busbar_scheduler.domain.watching import Sight, Standing, Watch
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

    def declared(self) -> tuple[Deployment, ...]:
        """Every deployment, also while the picture is not current."""
        ...


@dataclass(slots=True)
class Rollouts:
    """Looks at every version on trial once a second."""

    trials: Trials
    declarations: Declarations
    leadership: Leadership
    announcements: Announcements
    _watches: dict[str, Watch] = field(default_factory=dict[str, Watch])
    _said: dict[str, str] = field(default_factory=dict[str, str])

    def reason(self, deployment: str) -> str:
        """What a rollout waits for."""
        return self._said.get(deployment, "")

    async def look(self, now_s: float, now_unix_ms: int) -> None:
        """One round; raises Unavailable when the bus does not answer."""
        names = frozenset(one.name for one in self.trials.declared() if one.canary is not None)
        self.trials.tally.keep(names)
        for gone in self._watches.keys() - names:
            del self._watches[gone]
            self._said.pop(gone, None)
        snapshot = self.trials.current() if names else None
        if snapshot is None:
            return
        tried = [one for one in snapshot.deployments if one.canary is not None]
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
        moved = news_of(before, step.deployment, step.reason)
        if moved is None:
            return
        log.log(
            logging.WARNING if moved.rolled_back else logging.INFO,
            "version rolled back" if moved.rolled_back else "rollout moved",
            deployment=moved.deployment,
            bundle=moved.digest,
            phase=str(moved.phase),
            percent=moved.percent,
            reason=moved.reason,
        )
        await self.announcements.rollout_moved(moved)

    def _sight(self, snapshot: Snapshot, deployment: Deployment, now_s: float) -> Sight:
        canary, tally, name = deployment.canary, self.trials.tally, deployment.name
        assert canary is not None
        of_canary, of_stable = tally.of(name, canary.digest), tally.of(name, deployment.digest)
        wanted = max(1, snapshot.wanted(deployment))
        needed = canary_replicas(deployment, canary, wanted)
        ready = ready_replicas(snapshot, track_of(name), canary.digest)
        watch = self._watches.get(name)
        if watch is None or watch.canary != canary:
            watch = self._watches[name] = Watch(canary, of_canary, of_stable, now_s)
        standing = Standing(
            ready=ready_replicas(snapshot, name, deployment.digest),
            placed=placed_replicas(snapshot, name),
            wanted=wanted,
        )
        missing = "" if ready >= needed else unready(snapshot, track_of(name), needed)
        return watch.see(now_s, of_canary, of_stable, standing, missing)
