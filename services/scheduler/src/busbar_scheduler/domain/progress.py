"""How far a deployment has come, replica by replica, for those who wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from busbar_scheduler.domain.decisions import Verdict
from busbar_scheduler.domain.explaining import impossible
from busbar_scheduler.domain.fleet import Deployment, Node, ReplicaState
from busbar_scheduler.domain.packing import Packing
from busbar_scheduler.domain.planning import Plan


@dataclass(frozen=True, slots=True)
class ReplicaProgress:
    """One replica that is wanted; `node` is empty while it has none."""

    node: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A deployment's status: ready, progressing, failing, unplaceable, asleep or stopped."""

    status: str
    reason: str
    ready_replicas: int
    replicas: tuple[ReplicaProgress, ...]


def progress_of(deployment: Deployment, plan: Plan, empty: Packing) -> Progress:
    """What stands between a deployment and all its replicas being ready; `empty` as `emptied`."""
    fleet, decisions = plan.packing.fleet, plan.decisions_on(deployment.name)
    here = [one for one in decisions if one.verdict is not Verdict.REMOVED]
    replicas = tuple(
        _on_node(fleet.nodes[fleet.index[one.node]], deployment)
        if one.node
        else ReplicaProgress("", "unplaced", one.reason)
        for one in here
    )
    ready = sum(one.state == "ready" for one in replicas)
    wanted = [
        replica
        for replica, one in zip(replicas, here, strict=True)
        if one.verdict is not Verdict.LEAVING
    ]
    if not wanted and deployment.sleeps:
        return Progress("asleep", "nothing is asked; a request wakes it", ready, replicas)
    if not wanted:
        return Progress("stopped", "no replicas are wanted", ready, replicas)
    if all(one.state == "ready" for one in wanted):
        return Progress("ready", "", ready, replicas)
    never = impossible(deployment, empty)
    failed_before = any(node.avoided(deployment.digest) for node in fleet.nodes)
    status, reason = _summary(wanted, never, failed_before=failed_before)
    return Progress(status, reason, ready, replicas)


def _on_node(node: Node, deployment: Deployment) -> ReplicaProgress:
    if not node.health.takes_new:
        return ReplicaProgress(node.key, str(node.health), f"{node.label} is {node.health}")
    replica = node.replica_of(deployment.name)
    if replica is None or replica.digest != deployment.digest:
        return ReplicaProgress(node.key, "placed", "the node has not begun yet")
    return ReplicaProgress(node.key, str(replica.state), replica.reason)


def _summary(
    replicas: Sequence[ReplicaProgress], never: str, *, failed_before: bool
) -> tuple[str, str]:
    if never:
        return "unplaceable", never
    unfinished = [one for one in replicas if one.state != "ready"]
    failed = [one for one in unfinished if one.state == str(ReplicaState.FAILED)]
    if failed:
        return "failing", f"{failed[0].node.replace('.', '/')}: {failed[0].reason}"
    unplaced = [one.reason for one in unfinished if not one.node]
    status = "failing" if unplaced and failed_before else "progressing"
    return status, unplaced[0] if unplaced else ""
