"""Pack: replicas that are promised first, then those that pay, then those that are only wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice, pairwise

import numpy as np

from busbar_scheduler.domain import economy
from busbar_scheduler.domain.choosing import candidates, unlimited
from busbar_scheduler.domain.fleet import Deployment
from busbar_scheduler.domain.packing import Packing
from busbar_scheduler.domain.surviving import best_effort, shapes, survivors

_SHAPES_TRIED_MAX = 3


def missing(packing: Packing, deployment: Deployment) -> int:
    """Promised replicas that are short; with N+1, those that would be after a site's loss."""
    if deployment.survives_site_loss:
        return max(0, deployment.replicas - survivors(packing.per_site(deployment.name)))
    return max(0, deployment.replicas - packing.count(deployment.name))


def fulfil(packing: Packing, deployment: Deployment) -> None:
    """Place what is promised and not there, as far as there is room."""
    short = missing(packing, deployment)
    if not short:
        return
    if deployment.survives_site_loss:
        _fulfil_surviving(packing, deployment)
        return
    found = candidates(packing, deployment, short)
    for node in found.first(packing, deployment, short, unlimited(deployment)).tolist():
        packing.take(node, deployment)


def _fulfil_surviving(packing: Packing, deployment: Deployment) -> None:
    promised, name = deployment.replicas, deployment.name
    found, held = candidates(packing, deployment, 2 * promised), packing.per_site(name)
    at_site = np.bincount(packing.fleet.site[found.nodes], minlength=len(held))
    could_hold = held + at_site
    best, best_cost = None, 0
    for most, total in islice(shapes(promised, held, could_hold), _SHAPES_TRIED_MAX):
        more = total - packing.count(name)
        chosen = found.first(packing, deployment, more, most)
        cost = int(packing.costs(deployment)[chosen].sum())
        if len(chosen) == more and (best is None or cost < best_cost):
            best, best_cost = chosen, cost
    if best is None:
        most = best_effort(promised, could_hold)
        best = found.first(packing, deployment, len(found.nodes), most)
    for node in best.tolist():
        packing.take(node, deployment)


def top_up(packing: Packing, wanted: Iterable[tuple[Deployment, int]]) -> None:
    """Place what is wanted beyond promises: what earns most for its room first."""
    batches = [
        batch for deployment, count in wanted for batch in _batches(packing, deployment, count)
    ]
    for _, deployment, worth, size in sorted(batches, key=lambda batch: -batch[0]):
        found = candidates(packing, deployment, size)
        chosen = found.first(packing, deployment, size, unlimited(deployment))
        if worth:  # in the order of their costs, so that those which pay come first
            chosen = chosen[packing.costs(deployment)[chosen] < worth]
        for node in chosen.tolist():
            packing.take(node, deployment)


def _batches(
    packing: Packing, deployment: Deployment, wanted: int
) -> Iterable[tuple[float, Deployment, int, int]]:
    """(worth for its room, deployment, worth, replicas) of replicas that bring in the same.

    A worth of 0 means that nobody gave it a price; such replicas come last.
    """
    there = packing.count(deployment.name)
    demand = packing.fleet.demands.get(deployment.name)
    if there >= wanted:
        return
    if not economy.is_priced(deployment, demand):
        yield 0.0, deployment, 0, wanted - there
        return
    share = packing.share(deployment)
    revenue = [
        economy.revenue_nanos_per_h(deployment, demand, count) for count in range(there, wanted + 1)
    ]
    gains = [after - before for before, after in pairwise(revenue)]
    for worth, same in groupby(gains):
        if worth > 0:
            yield worth / share, deployment, worth, len(list(same))


def by_difficulty(packing: Packing, deployments: Sequence[Deployment]) -> list[Deployment]:
    """Those with the least choice first, then the largest, then the oldest."""

    def key(deployment: Deployment) -> tuple[int, float, int, str]:
        choice = len(packing.fitting(deployment)) - missing(packing, deployment)
        share = packing.share(deployment)
        return (min(choice, 8), -share, deployment.created_unix_ms, deployment.name)

    return sorted(deployments, key=key)
