"""Why a replica is where it is, why it is nowhere, and what can never be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice

import numpy as np

from busbar_scheduler.domain.arrays import Fleet
from busbar_scheduler.domain.choosing import unlimited
from busbar_scheduler.domain.filling import fulfil, missing
from busbar_scheduler.domain.fleet import Deployment, Order, Snapshot
from busbar_scheduler.domain.packing import Packing

_NODES_NAMED_MAX = 5


class Obstacle(StrEnum):
    """What keeps a replica off a node."""

    NOT_ALLOWED = "not allowed there"
    """By region or pin."""
    NOT_WELL = "not well"
    RETURNING = "back just now, and used by and by"
    CORDONED = "cordoned or drained"
    QUARANTINED = "quarantined"
    HOLDS_ONE = "already holds a replica"
    FAILED_THERE = "failed there lately"
    SUSPENDED = "failed elsewhere, and is tried nowhere new for now"
    MEMORY = "too little memory free"
    SLOTS = "too few slots free"
    NODE_POWER = "too little power left at the node"
    SITE_POWER = "too little power left at the site"
    SITE_LIMIT = "as many at its site as may be"
    FEEDER_LIMIT = "as many on its feeder as may be"


@dataclass(frozen=True, slots=True)
class Hindered:
    """What keeps replicas off how many nodes, with one of them to look at."""

    obstacle: Obstacle
    nodes: int
    example: str


def hindrances(packing: Packing, deployment: Deployment) -> tuple[Hindered, ...]:
    """The first obstacle of every node, counted; nodes without one are left out."""
    counts, examples = Counter[Obstacle](), dict[Obstacle, str]()
    crowded = _crowded(packing, deployment)
    for at, node in enumerate(packing.fleet.nodes):
        found = _obstacle(packing, at, deployment, crowded)
        if found:
            counts[found] += 1
            examples.setdefault(found, node.key)
    return tuple(Hindered(one, count, examples[one]) for one, count in counts.most_common())


@dataclass(frozen=True, slots=True)
class _Crowded:
    sites: frozenset[int]
    feeders: frozenset[int]


def _crowded(packing: Packing, deployment: Deployment) -> _Crowded:
    fleet, held = packing.fleet, packing.held(deployment.name)
    at_site = Counter(int(fleet.site[one]) for one in held)
    on_feeder = Counter(int(fleet.feeder[one]) for one in held)
    site_max, feeder_max = unlimited(deployment), deployment.per_feeder_max
    return _Crowded(
        frozenset(one for one, count in at_site.items() if count >= site_max),
        frozenset(one for one, count in on_feeder.items() if feeder_max and count >= feeder_max),
    )


def _obstacle(
    packing: Packing, at: int, deployment: Deployment, crowded: _Crowded
) -> Obstacle | None:
    node, fleet, need = packing.fleet.nodes[at], packing.fleet, deployment.manifest
    site = int(fleet.site[at])
    ordered = {node.order, fleet.sites[site].order} != {Order.SERVE}
    checks = (
        (not deployment.may_run_on(node), Obstacle.NOT_ALLOWED),
        (not node.health.takes_new, Obstacle.NOT_WELL),
        (node.returning, Obstacle.RETURNING),
        (node.order is Order.QUARANTINE, Obstacle.QUARANTINED),
        (ordered, Obstacle.CORDONED),
        (deployment.name in packing.on_node[at], Obstacle.HOLDS_ONE),
        (node.avoided(deployment.digest) is not None, Obstacle.FAILED_THERE),
        (deployment.digest in fleet.suspended, Obstacle.SUSPENDED),
        (need.memory_mib > packing.memory_mib[at], Obstacle.MEMORY),
        (need.slots > packing.slots[at], Obstacle.SLOTS),
        (need.power_w > packing.power_w[at], Obstacle.NODE_POWER),
        (need.power_w > packing.site_power_w[site], Obstacle.SITE_POWER),
        (site in crowded.sites, Obstacle.SITE_LIMIT),
        (int(fleet.feeder[at]) in crowded.feeders, Obstacle.FEEDER_LIMIT),
    )
    return next((obstacle for applies, obstacle in checks if applies), None)


def why_nowhere(packing: Packing, deployment: Deployment) -> str:
    """For people: what stands in the way on the nodes it may run on."""
    if suspended := packing.fleet.suspended.get(deployment.digest):
        return f"{suspended}; it is tried on no other for now"
    where = _where(deployment)
    allowed = np.flatnonzero(packing.allowed(deployment) & packing.fleet.keeps)
    if not len(allowed):
        return _nobody(packing, deployment, where)
    reasons = [
        f"{packing.fleet.nodes[at].label}: {_hindrance(packing, at, deployment)}"
        for at in allowed[:_NODES_NAMED_MAX].tolist()
    ]
    more = len(allowed) - _NODES_NAMED_MAX
    shown = "; ".join(reasons) + (f"; and {more} more" if more > 0 else "")
    return f"no room on any node in {where} ({shown})"


def _nobody(packing: Packing, deployment: Deployment, where: str) -> str:
    gone = [packing.fleet.nodes[at] for at in np.flatnonzero(packing.allowed(deployment)).tolist()]
    if not gone:
        return f"no node in {where}"
    named = "; ".join(f"{one.label} is {one.health}" for one in gone[:_NODES_NAMED_MAX])
    more = len(gone) - _NODES_NAMED_MAX
    return f"no node is left in {where}: {named}" + (f"; and {more} more" if more > 0 else "")


def _where(deployment: Deployment) -> str:
    where = f"region {' or '.join(deployment.regions)}" if deployment.regions else "the fleet"
    pins = " or ".join(one.replace(".", "/") for one in deployment.pins)
    return f"{pins} in {where}" if pins else where


def _hindrance(packing: Packing, at: int, deployment: Deployment) -> str:
    node = packing.fleet.nodes[at]
    site = packing.fleet.sites[packing.fleet.site[at]]
    cordoned = Order.CORDON in {node.order, site.order}
    avoided = node.avoided(deployment.digest)
    states = (
        (
            not node.health.takes_new,
            packing.shortage(at, deployment) or f"is {node.health}",
        ),
        (node.returning, f"is {Obstacle.RETURNING}"),
        (node.order is Order.QUARANTINE, "is quarantined"),
        ({node.order, site.order} != {Order.SERVE}, "is cordoned" if cordoned else "is drained"),
        (avoided is not None, avoided.reason if avoided else ""),
    )
    if reason := next((reason for applies, reason in states if applies), ""):
        return reason
    shortage = packing.shortage(at, deployment)
    limit = _obstacle(packing, at, deployment, _crowded(packing, deployment))
    if shortage or limit is None:
        return shortage or "has room, but the promise cannot be kept with it"
    return str(limit)


def emptied(snapshot: Snapshot) -> Packing:
    """The fleet as if nothing were placed, nothing had ever failed and no order were given."""
    nodes = tuple(
        replace(one, avoids=(), order=Order.SERVE, returning=False)
        if one.avoids or one.order is not Order.SERVE or one.returning
        else one
        for one in snapshot.nodes
    )
    sites = {key: replace(one, order=Order.SERVE) for key, one in snapshot.sites.items()}
    bare = replace(snapshot, nodes=nodes, sites=sites, placements={}, suspended={})
    return Packing(Fleet.of(bare))


def impossible(deployment: Deployment, empty: Packing) -> str:
    """Why the present nodes could not hold it even if they were empty; empty when they could."""
    if not deployment.most:
        return ""
    contradiction = contradictory(deployment)
    if contradiction:
        return contradiction
    if not len(empty.fitting(deployment)):
        return why_nowhere(empty, deployment)
    mark = empty.mark()
    fulfil(empty, deployment)
    reason = _too_many(empty, deployment) if missing(empty, deployment) else ""
    empty.undo(mark)
    return reason


def _too_many(packing: Packing, deployment: Deployment) -> str:
    could = len(packing.held(deployment.name))
    wanted = f"{deployment.replicas} replicas are wanted"
    if deployment.survives_site_loss:
        return (
            f"{wanted} after the loss of any one site, but {could} at most can be placed, of which "
            f"{int(packing.per_site(deployment.name).max())} at one site"
        )
    limits = [
        f"{count} at most {where}"
        for count, where in (
            (deployment.per_site_max, "at a site"),
            (deployment.per_feeder_max, "on a feeder"),
        )
        if count
    ]
    limit = f" with {' and '.join(limits)}" if limits else ""
    lacking = f" ({found})" if (found := _lacking(packing, deployment)) else ""
    return f"{wanted}, but a node holds one at most and only {could} could hold it{limit}{lacking}"


def _lacking(packing: Packing, deployment: Deployment) -> str:
    """What the first few nodes lack that could hold it if they were larger, or well."""
    others = (
        at
        for at in np.flatnonzero(packing.allowed(deployment) & packing.fleet.keeps).tolist()
        if deployment.name not in packing.on_node[at]
        and (packing.shortage(at, deployment) or not packing.fleet.nodes[at].health.takes_new)
    )
    return "; ".join(
        f"{packing.fleet.nodes[at].label}: {_hindrance(packing, at, deployment)}"
        for at in islice(others, _NODES_NAMED_MAX)
    )


def bounds_crossed(deployment: Deployment) -> str:
    """Why its bounds leave no number of replicas; empty when they do."""
    if 0 < deployment.max_replicas < deployment.replicas:
        return (
            f"{deployment.replicas} replicas are wanted, but max_replicas allows "
            f"{deployment.max_replicas}; raise it, or 0 for no scaling with demand"
        )
    return ""


def contradictory(deployment: Deployment) -> str:
    """What a declaration asks for that no fleet could give; empty when nothing."""
    pinned = {pin.split(".")[0] for pin in deployment.pins}
    if deployment.regions and pinned and not pinned & set(deployment.regions):
        return (
            f"pinned to {', '.join(sorted(pinned))}, but allowed in "
            f"{', '.join(deployment.regions)} only"
        )
    nodes = [pin for pin in deployment.pins if pin.count(".") == 2]  # noqa: PLR2004
    if deployment.pins and len(nodes) == len(deployment.pins) < deployment.replicas:
        return (
            f"{deployment.replicas} replicas are wanted, but it is pinned to {len(nodes)} "
            "nodes and a node holds one at most"
        )
    sites = {".".join(pin.split(".")[:2]) for pin in deployment.pins}
    if deployment.survives_site_loss and deployment.replicas and len(sites) == 1:
        return f"cannot survive the loss of {sites.pop().replace('.', '/')}: it is pinned there"
    return ""
