"""Make room for a promise: push out what is not promised, move what fits elsewhere.

A chain of moves is at most `_DEPTH` long and the attempts of a plan are counted, so that
a fleet that is simply full costs a bounded time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from busbar_scheduler.domain import economy
from busbar_scheduler.domain.choosing import candidates, unlimited
from busbar_scheduler.domain.filling import missing
from busbar_scheduler.domain.fleet import Deployment
from busbar_scheduler.domain.packing import Packing

_DEPTH, _GAIN_DEPTH = 3, 2
_OPENINGS_MAX = 12
"""Nodes tried for one replica."""


@dataclass(slots=True)
class RoomMaker:
    """Moves replicas about; `attempts_left` bounds the work of a plan."""

    packing: Packing
    attempts_left: int

    def fulfil(self, deployment: Deployment) -> None:
        """Get the promised replicas in that found no room, as far as it can be done."""
        short, stale = missing(self.packing, deployment), 0
        while short and self.attempts_left > 0 and stale <= deployment.replicas:
            mark = self.packing.mark()
            if not self._settle(deployment, _DEPTH):
                self.packing.undo(mark)
                return
            now = missing(self.packing, deployment)
            stale = 0 if now < short else stale + 1
            short = now

    def gain(self, deployment: Deployment, wanted: int) -> None:
        """Get replicas beyond promises in where they earn more than what has to yield for them."""
        demand = self.packing.fleet.demands.get(deployment.name)
        if not economy.is_priced(deployment, demand):
            return
        while self.packing.count(deployment.name) < wanted and self.attempts_left > 0:
            mark = self.packing.mark()
            if not self._settle(deployment, _GAIN_DEPTH, floor_nanos=self.packing.worth_nanos):
                self.packing.undo(mark)
                return

    def _settle(self, deployment: Deployment, depth: int, floor_nanos: int | None = None) -> bool:
        """One more replica, with moves if it has to be; nothing is changed when it fails.

        With a floor, only what leaves the whole plan worth more than that counts.
        """
        found = candidates(self.packing, deployment, 1)
        free = found.first(self.packing, deployment, 1, unlimited(deployment))
        if len(free):
            self.packing.take(int(free[0]), deployment)
            return floor_nanos is None or self.packing.worth_nanos > floor_nanos
        if not depth:
            return False
        return any(
            self._clear(node, victims, deployment, depth, floor_nanos)
            for node, victims in self._openings(deployment)
        )

    def _clear(
        self,
        node: int,
        victims: list[Deployment],
        deployment: Deployment,
        depth: int,
        floor_nanos: int | None,
    ) -> bool:
        self.attempts_left -= 1
        if self.attempts_left < 0:
            return False
        mark = self.packing.mark()
        for victim in victims:
            self.packing.release(node, victim)
        if self.packing.fits(node, deployment):
            self.packing.take(node, deployment)
            rehoused = all(self._rehouse(victim, depth - 1) for victim in victims)
            if rehoused and (floor_nanos is None or self.packing.worth_nanos > floor_nanos):
                return True
        self.packing.undo(mark)
        return False

    def _rehouse(self, victim: Deployment, depth: int) -> bool:
        """What was pushed out finds another place, or was not promised anyway."""
        if self._settle(victim, 0) and not missing(self.packing, victim):
            return True
        return not missing(self.packing, victim) or (
            self._settle(victim, depth) and not missing(self.packing, victim)
        )

    def _openings(self, deployment: Deployment) -> Iterator[tuple[int, list[Deployment]]]:
        """Nodes that would do if some of what they hold went, the least of it first."""
        packing, need = self.packing, deployment.manifest
        mask = (
            packing.allowed(deployment)
            & packing.fleet.takes_new
            & packing.within_limits(deployment)
        )
        mask[packing.held(deployment.name)] = False
        mask[list(packing.fleet.avoided.get(deployment.digest, ()))] = False
        mask &= deployment.digest not in packing.fleet.suspended
        lack = np.maximum(
            (need.memory_mib - packing.memory_mib) / max(1, need.memory_mib),
            (need.slots - packing.slots) / max(1, need.slots),
        )
        nodes = np.flatnonzero(mask)
        for node in nodes[np.argsort(lack[nodes], kind="stable")][:_OPENINGS_MAX].tolist():
            yield from ((node, victims) for victims in self._victims(node, deployment))

    def _victims(self, node: int, deployment: Deployment) -> Iterator[list[Deployment]]:
        """Small sets whose going would make the room, one at a time before several together."""
        packing, need = self.packing, deployment.manifest
        lacks = (
            need.memory_mib - int(packing.memory_mib[node]),
            need.slots - int(packing.slots[node]),
            need.power_w - int(packing.power_w[node]),
        )
        there = sorted(
            packing.on_node[node].values(), key=lambda one: (packing.share(one), one.name)
        )
        enough = [one for one in there if _frees([one], lacks)]
        yield from ([one] for one in enough)
        if not enough:
            yield from _together(list(reversed(there)), lacks)


def _frees(victims: list[Deployment], lacks: tuple[int, int, int]) -> bool:
    needs = [one.manifest for one in victims]
    return (
        sum(need.memory_mib for need in needs) >= lacks[0]
        and sum(need.slots for need in needs) >= lacks[1]
        and sum(need.power_w for need in needs) >= lacks[2]
    )


def _together(there: list[Deployment], lacks: tuple[int, int, int]) -> Iterator[list[Deployment]]:
    """The largest first until it is enough."""
    for count in range(2, len(there) + 1):
        if _frees(there[:count], lacks):
            yield there[:count]
            return
