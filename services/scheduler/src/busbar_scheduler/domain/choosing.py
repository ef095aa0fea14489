"""Nominate, score and choose: which nodes get the next replicas of one deployment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from busbar_scheduler.domain.arrays import Indices
from busbar_scheduler.domain.fleet import Deployment
from busbar_scheduler.domain.packing import NO_LIMIT, Packing

_TIGHTNESS_BITS, _COST_BITS = 12, 30


@dataclass(frozen=True, slots=True)
class Candidates:
    """Nodes that fit, best first, each with its rank among those of its site."""

    nodes: Indices
    costs: Indices
    rank_in_site: Indices
    """How many replicas its site would hold before it, those that are there included."""

    def first(
        self, packing: Packing, deployment: Deployment, wanted: int, per_site: int
    ) -> Indices:
        """The best `wanted` of them, at most `per_site` at a site and as declared on a feeder."""
        within = self.nodes[self.rank_in_site < per_site]
        if not deployment.per_feeder_max:
            return within[:wanted]
        feeder = packing.fleet.feeder
        held = feeder[packing.held(deployment.name)] if packing.count(deployment.name) else None
        room = np.full(int(feeder.max(initial=0)) + 1, deployment.per_feeder_max)
        if held is not None:
            np.subtract.at(room, held, 1)
        chosen = list[int]()
        for node in within:
            if len(chosen) == wanted:
                break
            if room[feeder[node]] > 0:
                room[feeder[node]] -= 1
                chosen.append(int(node))
        return np.array(chosen, dtype=np.int64)


def candidates(packing: Packing, deployment: Deployment, wanted: int) -> Candidates:
    """Where up to `wanted` more replicas could go: cheapest first, spread, then the tightest fit.

    Equal costs are spread over regions, then sites. The tightest fit keeps whole nodes
    free, for models that need one and for the miners.
    """
    fleet, nodes = packing.fleet, packing.fitting(deployment)
    if not len(nodes):
        return Candidates(nodes, nodes, nodes)
    costs, tightness = packing.costs(deployment)[nodes], packing.tightness(nodes)
    most = _most_at_site(packing, deployment, wanted)
    if wanted == 1:
        best = np.flatnonzero(most[fleet.site[nodes]] > 0)
        site_rank = region_rank = np.zeros(len(best), dtype=np.int64)
    else:
        best = _by_site(fleet.site[nodes], costs, tightness)
        site_rank = _position_in_run(fleet.site[nodes[best]])
        room = site_rank < most[fleet.site[nodes[best]]]
        best, site_rank = best[room], site_rank[room]
        key = (tightness[best], site_rank, costs[best])
        region_rank = _position_in_group(fleet.region[nodes[best]], key)
    nodes, costs, tightness = nodes[best], costs[best], tightness[best]
    if packing.count(deployment.name):
        held = np.array(packing.held(deployment.name), dtype=np.int64)
        site_rank = site_rank + _count(fleet.site, held)[fleet.site[nodes]]
        region_rank = region_rank + _count(fleet.region, held)[fleet.region[nodes]]
    order = np.lexsort((nodes, tightness, site_rank, region_rank, costs))
    return Candidates(nodes[order], costs[order], site_rank[order])


def _by_site(site: Indices, costs: Indices, tightness: Indices) -> Indices:
    """The order that groups nodes by site, and within a site puts the best first."""
    low = costs.min()
    if costs.max() - low < 1 << _COST_BITS:
        key = ((site << _COST_BITS) + costs - low << _TIGHTNESS_BITS) + tightness
        return np.argsort(key, kind="stable")
    return np.lexsort((tightness, costs, site))


def _position_in_group(group: Indices, key: tuple[Indices, ...]) -> Indices:
    """For each value how many of its group come before it, by a key as `lexsort` takes it."""
    order = np.lexsort((*key, group))
    position = np.empty(len(group), dtype=np.int64)
    position[order] = _position_in_run(group[order])
    return position


def _position_in_run(grouped: Indices) -> Indices:
    """For values that stand in groups: 0, 1, 2 ... in each group."""
    if not len(grouped):
        return grouped
    begins = np.empty(len(grouped), dtype=np.bool_)
    begins[0] = True
    np.not_equal(grouped[1:], grouped[:-1], out=begins[1:])
    return np.arange(len(grouped)) - np.flatnonzero(begins)[np.cumsum(begins) - 1]


def _count(group_of: Indices, held: Indices) -> Indices:
    return np.bincount(group_of[held], minlength=int(group_of.max()) + 1)


def _most_at_site(packing: Packing, deployment: Deployment, wanted: int) -> Indices:
    """For each site, how many more it may take."""
    most = np.full(len(packing.fleet.sites), NO_LIMIT if deployment.per_feeder_max else wanted)
    if deployment.per_site_max:
        most = np.minimum(most, deployment.per_site_max - packing.per_site(deployment.name))
    if power_w := deployment.manifest.power_w:
        most = np.minimum(most, packing.site_power_w // power_w)
    return most


def unlimited(deployment: Deployment) -> int:
    """The limit per site of a deployment that does not promise to survive one."""
    return deployment.per_site_max or NO_LIMIT
