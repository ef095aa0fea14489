"""Improve a small fleet's plan: take a part of it out, fill it anew, keep what is better.

Ruin and recreate (Schrimpf et al. 2000), with a random source given from outside, so that
the same snapshot gives the same plan. Large fleets are not searched: there filling alone
is within the bound, and a plan has two seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from busbar_scheduler.domain import economy
from busbar_scheduler.domain.filling import by_difficulty, fulfil, missing, top_up
from busbar_scheduler.domain.fleet import Deployment
from busbar_scheduler.domain.making_room import RoomMaker
from busbar_scheduler.domain.packing import Packing

NODES_MAX, REPLICAS_MAX = 40, 200
_OVERLOOKED = 0.15
_ATTEMPTS_MAX = 30
_GOOD_ENOUGH = 0.005
"""Relative distance from what no plan can exceed at which nothing more is tried."""


@dataclass(frozen=True, slots=True)
class Goals:
    """What is to be reached."""

    deployments: Sequence[Deployment]
    wanted: dict[str, int]
    """Deployment → replicas, promised and beyond."""

    def fill(self, packing: Packing, short: Sequence[Deployment]) -> None:
        """Promises in this order, then whatever pays, then what pays after moving others."""
        room = RoomMaker(packing, _ATTEMPTS_MAX)
        for deployment in short:
            fulfil(packing, deployment)
        for deployment in short:
            room.fulfil(deployment)
        top_up(packing, [(one, self.wanted[one.name]) for one in self.deployments])
        for deployment in self.deployments:
            room.gain(deployment, self.wanted[deployment.name])

    def reached(self, packing: Packing) -> tuple[int, int]:
        """(promised replicas that are short, negated worth): smaller is better."""
        return sum(missing(packing, one) for one in self.deployments), -packing.worth_nanos

    def least_short(self, packing: Packing) -> int:
        """Promised replicas that must be short whatever is done, as far as one sees at once."""
        alone = sum(max(0, one.replicas - packing.homes(one)) for one in self.deployments)
        promised = [one for one in self.deployments for _ in range(one.replicas)]
        memory, slots = packing.movable()
        together = max(
            _over(memory, [one.manifest.memory_mib for one in promised]),
            _over(slots, [one.manifest.slots for one in promised]),
        )
        return max(alone, together)

    def best_worth(self, packing: Packing) -> int:
        """A worth that no plan exceeds: each deployment as if it were alone."""
        return sum(_alone(packing, one, self.wanted[one.name]) for one in self.deployments)


def _over(room: int, needs: list[int]) -> int:
    """How many do not fit even if the smallest go first and could be cut to pieces."""
    totals = np.cumsum(np.sort(np.array(needs, dtype=np.int64)))
    return int((totals > room).sum())


def _alone(packing: Packing, deployment: Deployment, wanted: int) -> int:
    demand = packing.fleet.demands.get(deployment.name)
    costs = np.sort(packing.costs(deployment)[packing.allowed(deployment)])[:wanted]
    total = np.cumsum(costs)
    worths = [
        economy.revenue_nanos_per_h(deployment, demand, count + 1) - int(total[count])
        for count in range(len(costs))
    ]
    least = max(0, min(deployment.replicas, len(worths)) - 1)
    return max(worths[least:], default=0)


def search(packing: Packing, goals: Goals, patience: int, random: Random) -> None:
    """Try to do better until so many tries in a row did not."""
    if not goals.deployments or not packing.fleet.nodes:
        return
    least_short, best_worth = goals.least_short(packing), goals.best_worth(packing)
    reached, stale = goals.reached(packing), 0
    while stale < patience:
        enough = -reached[1] >= best_worth - abs(best_worth) * _GOOD_ENOUGH
        if reached[0] <= least_short and enough:
            return
        mark = packing.mark()
        _ruin(packing, goals, random)
        short = _shuffled(packing, goals, random)
        with packing.overlooking(_some(packing, random)):
            for deployment in short:
                fulfil(packing, deployment)
        goals.fill(packing, short)
        now = goals.reached(packing)
        if now < reached:
            reached, stale = now, 0
        else:
            packing.undo(mark)
            stale += 1


def _ruin(packing: Packing, goals: Goals, random: Random) -> None:
    """Empty a few nodes, or take a few deployments out; what must stay where it is stays."""
    movable = np.flatnonzero(packing.fleet.takes_new).tolist()
    if random.random() < 0.5:  # noqa: PLR2004
        for node in random.sample(movable, min(random.randint(1, 4), len(movable))):
            for deployment in list(packing.on_node[node].values()):
                packing.release(node, deployment)
        return
    for deployment in random.sample(list(goals.deployments), min(3, len(goals.deployments))):
        for node in packing.held(deployment.name):
            if packing.fleet.takes_new[node]:
                packing.release(node, deployment)


def _some(packing: Packing, random: Random) -> list[int]:
    """A few nodes that are overlooked, so that not the same ones are best every time."""
    return [node for node in range(len(packing.fleet.nodes)) if random.random() < _OVERLOOKED]


def _shuffled(packing: Packing, goals: Goals, random: Random) -> list[Deployment]:
    """The hardest first, or what the dice say."""
    short = [one for one in goals.deployments if missing(packing, one)]
    if random.random() < 0.5:  # noqa: PLR2004
        return by_difficulty(packing, short)
    return random.sample(short, len(short))
