"""What stays where it is, and what lingers until its replacement is ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from busbar_scheduler.domain.arrays import Fleet, Indices
from busbar_scheduler.domain.choosing import candidates
from busbar_scheduler.domain.filling import missing
from busbar_scheduler.domain.fleet import Deployment, Health, Order, ReplicaState
from busbar_scheduler.domain.packing import NO_LIMIT, Packing
from busbar_scheduler.domain.surviving import survivors

_Usefulness = tuple[bool, int, bool, int]
"""Silent, what it costs, not ready, and the node: the smallest is kept first."""


def keep(packing: Packing, deployment: Deployment, wanted: int) -> dict[int, str]:
    """Leave replicas where they are, the most useful first; why the others are not left."""
    gone = dict[int, str]()
    costs = packing.costs(deployment)
    useful = {
        node: _usefulness(packing, node, deployment, int(costs[node]))
        for node in packing.fleet.before.get(deployment.name, ())
    }
    holders = sorted(useful, key=useful.__getitem__)
    if len(holders) > wanted:
        holders = _spread(packing.fleet, holders, useful)
    # A spare can be told from the others only when all of them are known.
    most = NO_LIMIT if deployment.survives_site_loss else wanted
    for node in holders:
        if reason := _why_not_kept(packing, node, deployment, most):
            gone[node] = reason
        else:
            packing.leave(node, deployment)
    if deployment.survives_site_loss:
        gone |= _trim(packing, deployment, wanted, reversed(holders))
    return gone


def _usefulness(packing: Packing, node: int, deployment: Deployment, cost: int) -> _Usefulness:
    there = packing.fleet.nodes[node]
    return (not there.health.serves, cost, not is_ready(packing, node, deployment), node)


def _spread(fleet: Fleet, holders: list[int], useful: Mapping[int, _Usefulness]) -> list[int]:
    """Among equals one of each region and site before a second: so those stay that stand apart."""
    equal = {node: useful[node][:-1] for node in holders}
    at_site = _rank(holders, fleet.site)
    apart = sorted(holders, key=lambda node: (equal[node], at_site[node], node))
    in_region = _rank(apart, fleet.region)
    return sorted(apart, key=lambda node: (equal[node], in_region[node], at_site[node], node))


def _rank(nodes: Iterable[int], group_of: Indices) -> dict[int, int]:
    """How many of its group come before each."""
    seen, rank = Counter[int](), dict[int, int]()
    for node in nodes:
        group = int(group_of[node])
        rank[node] = seen[group]
        seen[group] += 1
    return rank


def is_ready(packing: Packing, node: int, deployment: Deployment) -> bool:
    """Whether the replica there serves, as its node says."""
    replica = packing.fleet.nodes[node].replica_of(deployment.name)
    return (
        replica is not None
        and replica.state is ReplicaState.READY
        and replica.digest == deployment.digest
    )


def _why_not_kept(packing: Packing, node: int, deployment: Deployment, most: int) -> str:
    reason = _barred(packing, node, deployment, most)
    if reason or packing.fleet.nodes[node].health is Health.UNREPORTED:
        return reason  # what an unreported node has is not known yet, and it held this before
    return _crowded(packing, node, deployment) or packing.shortage(node, deployment)


def _barred(packing: Packing, node: int, deployment: Deployment, most: int) -> str:
    """What keeps it from staying, however much room there is; asked of thousands in a moment."""
    there, reason = packing.fleet.nodes[node], ""
    if not packing.fleet.keeps[node]:
        reason = f"the node is {there.health}"
    elif not packing.allowed(deployment)[node]:
        may = deployment.may_run_in(there.region)
        reason = "not pinned there" if may else f"not allowed in region {there.region}"
    elif there.order is Order.QUARANTINE:
        reason = "the node is quarantined"
    elif packing.fleet.empties(node):
        reason = "the node is drained"
    elif packing.count(deployment.name) >= most:
        reason = f"{most} replicas are wanted"
    elif avoided := there.avoided(deployment.digest):
        reason = avoided.reason
    return reason


def put_back(
    packing: Packing, deployment: Deployment, wanted: int, gone: Mapping[int, str]
) -> None:
    """Leave what failed where it was and found no better place: it is tried on there.

    Not where Triton died of it: what else is on that node is worth more.
    """
    for node, reason in gone.items():
        there = packing.fleet.nodes[node]
        avoided = there.avoided(deployment.digest)
        if avoided is None or avoided.crashed or reason != avoided.reason:
            continue
        if packing.count(deployment.name) >= wanted or _has_choice(packing, deployment):
            return
        if not _crowded(packing, node, deployment) and packing.fits(node, deployment):
            packing.take(node, deployment)


def _has_choice(packing: Packing, deployment: Deployment) -> bool:
    """Whether what is not promised may still find a place."""
    if missing(packing, deployment):
        return False
    return bool(len(candidates(packing, deployment, 1).nodes))


def _crowded(packing: Packing, node: int, deployment: Deployment) -> str:
    fleet, name = packing.fleet, deployment.name
    if most := deployment.per_site_max:
        at_site = sum(fleet.site[one] == fleet.site[node] for one in packing.held(name))
        if at_site >= most:
            return f"{most} at its site already"
    if most := deployment.per_feeder_max:
        on_feeder = sum(fleet.feeder[one] == fleet.feeder[node] for one in packing.held(name))
        if on_feeder >= most:
            return f"{most} on its feeder already"
    return ""


def _trim(
    packing: Packing, deployment: Deployment, wanted: int, worst_first: Iterable[int]
) -> dict[int, str]:
    """Let spares go that the promise does not need."""
    gone, site_of = dict[int, str](), packing.fleet.site
    left = packing.per_site(deployment.name)
    for node in worst_first:
        if deployment.name not in packing.on_node[node] or packing.count(deployment.name) <= wanted:
            continue
        left[site_of[node]] -= 1
        if survivors(left) >= deployment.replicas:
            packing.release(node, deployment)
            gone[node] = "enough are left without it, whichever site is lost"
        else:
            left[site_of[node]] += 1
    return gone


def linger(packing: Packing, deployment: Deployment, wanted: int) -> list[int]:
    """Replicas that go on serving where they are until those that replace them are ready.

    Beyond a limit per site or feeder only as many as there are on their way: where nothing
    can come, the limit would be broken for good.
    """
    held = set(packing.held(deployment.name))
    leaving = packing.fleet.before.get(deployment.name, frozenset()) - held
    if not leaving:
        return []
    serving = sum(
        is_ready(packing, node, deployment) and packing.fleet.nodes[node].health.serves
        for node in held
    )
    coming, stay = len(held) - serving, list[int]()
    for node in sorted(leaving):
        if serving + len(stay) >= wanted:
            break
        if not _may_linger(packing, node, deployment) or not packing.fits(node, deployment):
            continue
        if _crowded(packing, node, deployment):
            if not coming:
                continue
            coming -= 1
        packing.take(node, deployment)
        stay.append(node)
    return stay


def _may_linger(packing: Packing, node: int, deployment: Deployment) -> bool:
    there = packing.fleet.nodes[node]
    site = packing.fleet.sites[packing.fleet.site[node]]
    return (
        there.health.serves
        and deployment.may_run_on(there)
        and there.order.serves_on
        and site.order.serves_on
        and is_ready(packing, node, deployment)
    )
