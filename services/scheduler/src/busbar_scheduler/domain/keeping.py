"""What stays where it is, and what lingers until its replacement is ready."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from busbar_scheduler.domain.choosing import candidates
from busbar_scheduler.domain.filling import missing
from busbar_scheduler.domain.fleet import Deployment, Health, Node, Order, ReplicaState
from busbar_scheduler.domain.packing import NO_LIMIT, Packing
from busbar_scheduler.domain.surviving import survivors


def keep(packing: Packing, deployment: Deployment, wanted: int) -> dict[int, str]:
    """Leave replicas where they are, the most useful first; why the others are not left."""
    gone = dict[int, str]()
    holders = sorted(
        packing.fleet.before.get(deployment.name, ()),
        key=lambda node: _usefulness(packing, node, deployment),
    )
    # A spare can be told from the others only when all of them are known.
    most = NO_LIMIT if deployment.survives_site_loss else wanted
    for node in holders:
        if reason := _why_not_kept(packing, node, deployment, most):
            gone[node] = reason
        else:
            packing.take(node, deployment)
    if deployment.survives_site_loss:
        gone |= _trim(packing, deployment, wanted, reversed(holders))
    return gone


def _usefulness(packing: Packing, node: int, deployment: Deployment) -> tuple[bool, int, bool, int]:
    there = packing.fleet.nodes[node]
    cost = int(packing.costs(deployment)[node])
    return (not there.health.serves, cost, not is_ready(packing, node, deployment), node)


def is_ready(packing: Packing, node: int, deployment: Deployment) -> bool:
    """Whether the replica there serves, as its node says."""
    replica = packing.fleet.nodes[node].replica_of(deployment.name)
    return (
        replica is not None
        and replica.state is ReplicaState.READY
        and replica.digest == deployment.digest
    )


def _why_not_kept(packing: Packing, node: int, deployment: Deployment, most: int) -> str:
    fleet, there = packing.fleet, packing.fleet.nodes[node]
    obstacles = (
        (not there.health.keeps, f"the node is {there.health}"),
        (not deployment.may_run_in(there.region), f"not allowed in region {there.region}"),
        (not deployment.may_run_on(there), "not pinned there"),
        (there.order is Order.QUARANTINE, "the node is quarantined"),
        (fleet.empties(node), "the node is drained"),
        (packing.count(deployment.name) >= most, f"{most} replicas are wanted"),
        (there.avoided(deployment.digest) is not None, _failing(there, deployment)),
    )
    reason = next((reason for applies, reason in obstacles if applies), "")
    if reason or there.health is Health.UNREPORTED:
        return reason  # what an unreported node has is not known yet, and it held this before
    return _crowded(packing, node, deployment) or packing.shortage(node, deployment)


def _failing(there: Node, deployment: Deployment) -> str:
    avoided = there.avoided(deployment.digest)
    return avoided.reason if avoided else ""


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
    fleet, held = packing.fleet, packing.held(deployment.name)
    at_site = sum(fleet.site[one] == fleet.site[node] for one in held)
    if deployment.per_site_max and at_site >= deployment.per_site_max:
        return f"{deployment.per_site_max} at its site already"
    on_feeder = sum(fleet.feeder[one] == fleet.feeder[node] for one in held)
    if deployment.per_feeder_max and on_feeder >= deployment.per_feeder_max:
        return f"{deployment.per_feeder_max} on its feeder already"
    return ""


def _trim(
    packing: Packing, deployment: Deployment, wanted: int, worst_first: Iterable[int]
) -> dict[int, str]:
    """Let spares go that the promise does not need."""
    gone = dict[int, str]()
    for node in worst_first:
        if deployment.name not in packing.on_node[node] or packing.count(deployment.name) <= wanted:
            continue
        mark = packing.mark()
        packing.release(node, deployment)
        if survivors(packing.per_site(deployment.name)) >= deployment.replicas:
            gone[node] = "enough are left without it, whichever site is lost"
        else:
            packing.undo(mark)
    return gone


def linger(packing: Packing, deployment: Deployment, wanted: int) -> list[int]:
    """Replicas that go on serving where they are until those that replace them are ready."""
    held = set(packing.held(deployment.name))
    leaving = packing.fleet.before.get(deployment.name, frozenset()) - held
    if not leaving:
        return []
    serving = sum(
        is_ready(packing, node, deployment) and packing.fleet.nodes[node].health.serves
        for node in held
    )
    stay = list[int]()
    for node in sorted(leaving):
        if serving + len(stay) >= wanted:
            break
        if _may_linger(packing, node, deployment) and packing.fits(node, deployment):
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
