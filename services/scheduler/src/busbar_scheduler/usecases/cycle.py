"""The scheduling cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import structlog
from busbar_errors import Conflict

from busbar_scheduler.domain.fleet import Snapshot
from busbar_scheduler.domain.leading import Deposed
from busbar_scheduler.domain.planning import Plan, plan, replan
from busbar_scheduler.domain.publishing import Changes, diff, queues_told
from busbar_scheduler.domain.queues import QueueNames, wanted_queues
from busbar_scheduler.usecases.ports import Announcements, Board, Fleet, Leadership, WorkQueues

log = structlog.get_logger()


class Outcome(Enum):
    """How a cycle ended."""

    STANDBY = "standby"
    UNSETTLED = "unsettled"
    UNCHANGED = "unchanged"
    PUBLISHED = "published"
    CONFLICT = "conflict"
    """Somebody else wrote; the next cycle starts from what stands there now."""
    DEPOSED = "deposed"


_WHOLE_EVERY_S = 300.0
"""How often everything is planned anew, so that what runs follows the price of power."""


@dataclass(slots=True)
class Planner:
    """Plans by the difference to the last plan; `now_s` is a monotonic clock."""

    now_s: Callable[[], float]
    _last: Plan | None = None
    _whole_at_s: float = 0.0

    def plan(self, snapshot: Snapshot) -> Plan:
        """The plan of a snapshot."""
        now_s = self.now_s()
        if self._last is None or now_s - self._whole_at_s >= _WHOLE_EVERY_S:
            self._whole_at_s = now_s
            self._last = plan(snapshot)
        else:
            self._last = replan(self._last, snapshot)
        return self._last


@dataclass(frozen=True, slots=True)
class Cycle:
    """Turns what is declared and reported into placements and routes, one pass at a time."""

    fleet: Fleet
    leadership: Leadership
    board: Board
    queues: WorkQueues
    announcements: Announcements
    planner: Planner

    async def run_once(self) -> Outcome:
        """One pass; raises Unavailable when the bus does not answer."""
        # 1. Gather: what is declared, what is reported, what was planned before, what is asked.
        snapshot = self.fleet.gather()
        # 2. Only the leader publishes; who stands by knows what was asked when it has to lead.
        token = self.leadership.token()
        if token is None:
            return Outcome.STANDBY
        if snapshot is None:
            return Outcome.UNSETTLED
        # 3. Plan: pure; only what changed is planned again, and everything every few minutes.
        decided = self.planner.plan(snapshot)
        # 4. Queues come first, so that a node finds the queue of what it is told to serve.
        wanted = wanted_queues(snapshot, decided.placements, self.fleet.published())
        queues = await self.queues.ensure(wanted)
        # 5. Publish the difference, placements before routes.
        changes = diff(self.fleet.published(), decided, token, queues)
        if not changes:
            return Outcome.UNCHANGED
        try:
            await self._publish(decided, changes, token, queues)
        except Deposed as deposed:
            log.warning("deposed", reason=deposed.reason)
            self.leadership.step_down()
            return Outcome.DEPOSED
        except Conflict as conflict:
            log.info("lost a race", reason=conflict.reason)
            return Outcome.CONFLICT
        # 6. Say so.
        _tell(decided, changes)
        await self.announcements.plan_published(decided, changes)
        return Outcome.PUBLISHED

    async def _publish(
        self, decided: Plan, changes: Changes, token: int, queues: QueueNames
    ) -> None:
        for node, held in changes.placements.items():
            told = queues_told(node, held, queues)
            await self.board.put_placement(node, held, token, decided.revision, told)
        for node in changes.placements_gone:
            await self.board.delete_placement(node, token)
        for route in changes.routes.values():
            await self.board.put_route(route, token)
        for name in changes.routes_gone:
            await self.board.delete_route(name, token)


def _tell(decided: Plan, changes: Changes) -> None:
    news = [str(one) for one in decided.changed]
    log.info(
        "plan published",
        revision=decided.revision,
        placements=sorted([*changes.placements, *changes.placements_gone]),
        routes=sorted([*changes.routes, *changes.routes_gone]),
        reasons=news[:20],
    )
