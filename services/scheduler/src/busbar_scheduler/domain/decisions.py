"""What a plan says about each replica."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from busbar_scheduler.domain.arrays import Fleet
from busbar_scheduler.domain.attempting import Attempt
from busbar_scheduler.domain.explaining import why_nowhere
from busbar_scheduler.domain.fleet import Deployment, Health, Snapshot
from busbar_scheduler.domain.packing import Packing


class Verdict(StrEnum):
    """What a plan does with one replica."""

    KEPT = "kept"
    PLACED = "placed"
    REMOVED = "removed"
    UNPLACED = "unplaced"
    LEAVING = "leaving"
    """It serves where it is until what replaces it is ready."""


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


def decide(
    snapshot: Snapshot,
    made: Attempt,
    deployment: Deployment,
    before: frozenset[int],
    reasons: Mapping[int, str],
) -> tuple[Decision, ...]:
    """What becomes of the replicas of one deployment, by node; `before` held it until now."""
    packing, name = made.packing, deployment.name
    lingering, held = made.lingering[name], packing.held(name)
    found = list(_placed(packing, name, before, frozenset(lingering)))
    for node in before - set(held):
        if packing.fleet.nodes[node].health.keeps:
            reason = reasons.get(node, "its room or its power is better used elsewhere")
            key = packing.fleet.nodes[node].key
            found.append(Decision(name, key, Verdict.REMOVED, reason))
    short = made.short[name]
    if short:
        why = why_nowhere(packing, deployment)
        found += [Decision(name, "", Verdict.UNPLACED, why)] * short
    beyond = snapshot.wanted(deployment) - (len(held) - len(lingering)) - short
    if beyond > 0:
        found += [Decision(name, "", Verdict.UNPLACED, _why_not_more(packing, deployment))] * beyond
    return tuple(sorted(found, key=lambda one: (one.node, one.verdict)))


def _placed(
    packing: Packing, name: str, before: frozenset[int], lingering: frozenset[int]
) -> Iterable[Decision]:
    for node in packing.held(name):
        key = packing.fleet.nodes[node].key
        if node in lingering:
            yield Decision(name, key, Verdict.LEAVING, "until its replacement is ready")
        elif node in before:
            yield Decision(name, key, Verdict.KEPT, "already there")
        else:
            yield Decision(name, key, Verdict.PLACED, "fits, and costs least there")


def _why_not_more(packing: Packing, deployment: Deployment) -> str:
    if len(packing.fitting(deployment)):
        return "one more would cost more than it brings in"
    return why_nowhere(packing, deployment)


def forgotten(snapshot: Snapshot, fleet: Fleet) -> Iterable[Decision]:
    """Replicas that go because their node or their deployment did; `fleet` is the snapshot's."""
    declared = {one.name for one in snapshot.deployments}
    broken = {fleet.nodes[at].key: fleet.nodes[at].health for at in np.flatnonzero(~fleet.keeps)}
    broken |= dict.fromkeys(snapshot.placements.keys() - fleet.index.keys(), Health.LOST)
    for key, health in broken.items():
        for held in snapshot.placements.get(key, ()):
            if held.deployment in declared:
                yield Decision(held.deployment, key, Verdict.REMOVED, f"the node is {health}")
            elif key not in fleet.index:
                yield Decision(held.deployment, key, Verdict.REMOVED, "withdrawn")
    for name in fleet.before.keys() - declared:
        for at in fleet.before[name]:
            yield Decision(name, fleet.nodes[at].key, Verdict.REMOVED, "withdrawn")
