"""What has to be planned again because a site is not as it was.

Another price moves nothing by itself, and more power only helps those who lack a place, who
are planned again in any case. Less power displaces as many as must go, an order whoever is there.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from busbar_scheduler.domain.arrays import described
from busbar_scheduler.domain.fleet import Deployment, Snapshot
from busbar_scheduler.domain.packing import NO_LIMIT, Packing


def rewired(before: Packing, snapshot: Snapshot) -> bool:
    """Whether a site hangs on another feeder: then nothing can be carried over."""
    return any(described(snapshot, one).feeder != one.feeder for one in before.fleet.sites)


def displaced(before: Packing, snapshot: Snapshot) -> set[str]:
    """Deployments that lose a replica to a site's new cap, or stand where an order is new."""
    found = set[str]()
    for at, site in enumerate(before.fleet.sites):
        now = described(snapshot, site)
        if now is site:
            continue
        if now.order is not site.order and (now.order.empties or site.order.empties):
            found.update(one.name for one in _there(before, at))
        cut_w = (site.power_cap_w or NO_LIMIT) - (now.power_cap_w or NO_LIMIT)
        found |= _beyond(before, at, cut_w - int(before.site_power_w[at]))
    return found


def _beyond(before: Packing, site: int, over_w: int) -> set[str]:
    """The youngest that draw so much at a site: what `keep` would come to last."""
    found = set[str]()
    if over_w <= 0:
        return found
    replicas = _there(before, site)
    counts = Counter(one.name for one in replicas)
    youngest = {one.name: one for one in sorted(replicas, key=_age, reverse=True)}
    for name, one in youngest.items():
        if over_w <= 0:
            break
        if one.manifest.power_w:
            over_w -= counts[name] * one.manifest.power_w
            found.add(name)
    return found


def _there(before: Packing, site: int) -> list[Deployment]:
    """What a site holds, once for each replica."""
    there = np.flatnonzero(before.fleet.site == site).tolist()
    return [one for node in there for one in before.on_node[node].values()]


def _age(deployment: Deployment) -> tuple[int, str]:
    return deployment.created_unix_ms, deployment.name
