"""Move what stands where power is dear to where it is so much cheaper that moving pays."""

from __future__ import annotations

import numpy as np

from busbar_scheduler.domain.choosing import candidates, unlimited
from busbar_scheduler.domain.filling import missing
from busbar_scheduler.domain.fleet import Deployment
from busbar_scheduler.domain.packing import Packing


def relocate(packing: Packing, deployment: Deployment) -> None:
    """Move replicas of one deployment, the dearest first, while that saves something."""
    costs = packing.costs(deployment)
    for _ in range(packing.count(deployment.name)):
        movable = [one for one in packing.held(deployment.name) if packing.fleet.takes_new[one]]
        if not movable:
            return
        dearest = max(movable, key=lambda node: (int(costs[node]), -node))
        homes = packing.allowed(deployment) & packing.fleet.takes_new
        if int(np.min(costs[homes], initial=costs[dearest])) >= costs[dearest]:
            return
        if not _move(packing, deployment, dearest):
            return


def _move(packing: Packing, deployment: Deployment, dearest: int) -> bool:
    costs, short = packing.costs(deployment), missing(packing, deployment)
    mark = packing.mark()
    packing.release(dearest, deployment)
    fitting = packing.fitting(deployment)
    if int(np.min(costs[fitting], initial=costs[dearest])) < costs[dearest]:
        found = candidates(packing, deployment, 1)
        best = found.first(packing, deployment, 1, unlimited(deployment))
        if len(best) and costs[best[0]] < costs[dearest]:
            packing.take(int(best[0]), deployment)
            if missing(packing, deployment) <= short:
                return True
    packing.undo(mark)
    return False
