"""From a snapshot to a plan: first fit by memory and slots, spread, nothing moved needlessly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from busbar_scheduler.domain.fleet import (
    Deployment,
    Health,
    Node,
    Placements,
    ReplicaState,
    Routes,
    Snapshot,
)
from busbar_scheduler.domain.room import Room
from busbar_scheduler.domain.routing import route_of


class Verdict(StrEnum):
    """What a plan does with one replica."""

    KEPT = "kept"
    PLACED = "placed"
    REMOVED = "removed"
    UNPLACED = "unplaced"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one replica and why; `node` is empty when it has none."""

    deployment: str
    node: str
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        where = f" on {self.node.replace('.', '/')}" if self.node else ""
        return f"{self.deployment} {self.verdict}{where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What every node must hold and how every deployment is reached."""

    revision: int
    placements: Placements
    routes: Routes
    decisions: tuple[Decision, ...]

    def decisions_on(self, deployment: str) -> tuple[Decision, ...]:
        """What was decided on one deployment."""
        return tuple(one for one in self.decisions if one.deployment == deployment)


def plan(snapshot: Snapshot) -> Plan:
    """Decide. Deterministic, and a plan that was carried out is planned again unchanged."""
    nodes = sorted(snapshot.nodes, key=lambda node: node.key)
    keeping = [node for node in nodes if node.health.keeps]
    deployments = sorted(snapshot.deployments, key=lambda one: (one.created_unix_ms, one.name))
    room, decisions = Room(nodes), list[Decision]()

    kept = {one.name: 0 for one in deployments}
    for deployment in sorted(deployments, key=lambda one: _grows(snapshot, one)):
        for decision in _keep(snapshot, deployment, keeping, room):
            kept[deployment.name] += decision.verdict is Verdict.KEPT
            decisions.append(decision)
    for deployment in deployments:
        missing = deployment.replicas - kept[deployment.name]
        decisions += _place(deployment, missing, keeping, room)
    decisions += _forgotten(snapshot, nodes)

    placements = {node.key: room.held(node.key) for node in nodes if node.health is not Health.LOST}
    routes = {one.name: route_of(one, nodes, placements, snapshot.routes) for one in deployments}
    by_name = sorted(decisions, key=lambda one: (one.deployment, one.node, one.verdict))
    return Plan(snapshot.revision, placements, routes, tuple(by_name))


def _grows(snapshot: Snapshot, deployment: Deployment) -> bool:
    """Whether its bundle changes; what stays as it is gets its room first."""
    return any(
        held.deployment == deployment.name and held.digest != deployment.digest
        for assignments in snapshot.placements.values()
        for held in assignments
    )


def _keep(
    snapshot: Snapshot, deployment: Deployment, nodes: list[Node], room: Room
) -> Iterable[Decision]:
    """Leave replicas where they are, the most useful first when fewer are wanted."""
    holders = [
        node
        for node in nodes
        if any(one.deployment == deployment.name for one in snapshot.placements.get(node.key, ()))
    ]
    kept = 0
    for node in sorted(holders, key=lambda node: _usefulness(node, deployment)):
        reason = _why_not_kept(node, deployment, kept, room)
        if reason:
            yield Decision(deployment.name, node.key, Verdict.REMOVED, reason)
            continue
        room.take(node, deployment)
        kept += 1
        yield Decision(deployment.name, node.key, Verdict.KEPT, "already there")


def _usefulness(node: Node, deployment: Deployment) -> tuple[bool, bool, str]:
    replica = node.replica_of(deployment.name)
    ready = replica is not None and replica.state is ReplicaState.READY
    return (not node.health.serves, not ready, node.key)


def _why_not_kept(node: Node, deployment: Deployment, kept: int, room: Room) -> str:
    if kept >= deployment.replicas:
        return f"{deployment.replicas} replicas are wanted"
    if not deployment.may_run_in(node.region):
        return f"not allowed in region {node.region}"
    if node.health is Health.UNREPORTED:
        return ""  # what it has is not known yet, and it held this before
    return room.shortage(node, deployment)


def _place(
    deployment: Deployment, missing: int, nodes: list[Node], room: Room
) -> Iterable[Decision]:
    """Find room for the replicas that have none."""
    allowed = [node for node in nodes if deployment.may_run_in(node.region)]
    taking = [node for node in allowed if node.health.takes_new]
    for _ in range(missing):
        fitting = [node for node in taking if not room.shortage(node, deployment)]
        if not fitting:
            yield from _unplaced(deployment, missing, allowed, room)
            return
        best = min(fitting, key=lambda node: room.preference(node, deployment))
        room.take(best, deployment)
        missing -= 1
        yield Decision(deployment.name, best.key, Verdict.PLACED, "fits, emptiest of its kind")


def _unplaced(
    deployment: Deployment, missing: int, allowed: list[Node], room: Room
) -> Iterable[Decision]:
    reason = _why_nowhere(deployment, allowed, room)
    for _ in range(missing):
        yield Decision(deployment.name, "", Verdict.UNPLACED, reason)


_NODES_NAMED_MAX = 5


def _why_nowhere(deployment: Deployment, allowed: list[Node], room: Room) -> str:
    where = f"region {' or '.join(deployment.regions)}" if deployment.regions else "the fleet"
    if not allowed:
        return f"no node in {where}"
    reasons = [f"{node.label}: {_obstacle(node, deployment, room)}" for node in allowed]
    more = len(reasons) - _NODES_NAMED_MAX
    shown = "; ".join(reasons[:_NODES_NAMED_MAX]) + (f"; and {more} more" if more > 0 else "")
    return f"no room on any node in {where} ({shown})"


def _obstacle(node: Node, deployment: Deployment, room: Room) -> str:
    return room.shortage(node, deployment) or f"is {node.health}"


def _forgotten(snapshot: Snapshot, nodes: list[Node]) -> Iterable[Decision]:
    """Replicas that go because their node or their deployment did."""
    declared = {one.name for one in snapshot.deployments}
    keeping = {node.key: node.health for node in nodes}
    for node_key, assignments in snapshot.placements.items():
        health = keeping.get(node_key, Health.LOST)
        for held in assignments:
            if held.deployment not in declared:
                reason = "withdrawn"
            elif not health.keeps:
                reason = f"the node is {health}"
            else:
                continue
            yield Decision(held.deployment, node_key, Verdict.REMOVED, reason)


def impossible(deployment: Deployment, nodes: Iterable[Node]) -> str:
    """Why the present nodes could not hold it even if they were empty; empty when they could."""
    allowed = [one for one in nodes if one.health.keeps and deployment.may_run_in(one.region)]
    empty = Room(allowed)
    fitting = [node for node in allowed if not empty.shortage(node, deployment)]
    if len(fitting) >= deployment.replicas:
        return ""
    if not fitting:
        return _why_nowhere(deployment, allowed, empty)
    return (
        f"{deployment.replicas} replicas are wanted, but a node holds one at most "
        f"and only {len(fitting)} could hold it"
    )
