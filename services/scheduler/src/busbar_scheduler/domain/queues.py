"""Who may know what the queues of work are called: to know a queue's name is to pull from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.fleet import Placements, Snapshot
from busbar_scheduler.domain.publishing import Published

QueueNames = Mapping[tuple[str, str], str]
"""Names that cannot be guessed, by region and deployment."""


@dataclass(frozen=True, slots=True)
class WantedQueues:
    """The queues that shall be there, by region and deployment, and the names that shall not."""

    regions: frozenset[str] = frozenset()
    """Those of which something is heard: what a region that is dark cannot do holds up no other."""
    held: frozenset[tuple[str, str]] = frozenset()
    """Somebody holds the deployment: the queue is needed now."""
    plain: frozenset[tuple[str, str]] = frozenset()
    """Of those, the ones that go by the deployment's name: a holder's agent knows no other."""
    declared: frozenset[str] = frozenset()
    """Deployments whose queues stay although nobody holds them."""
    outlived: frozenset[tuple[str, str]] = field(default_factory=frozenset[tuple[str, str]])
    """Region and name, where a site knows the name and holds the deployment no more."""
    told: frozenset[tuple[str, str]] = field(default_factory=frozenset[tuple[str, str]])
    """Region and name, of all that some node was told last."""


def wanted_queues(snapshot: Snapshot, placements: Placements, published: Published) -> WantedQueues:
    """The queues for these placements, which follow those that were published.

    A node of which no report is known does not count: what the others go by stays.
    """
    reads = {node.key: node.reads_queue_names for node in snapshot.nodes}
    at_site, plain = defaultdict[str, set[str]](set), set[tuple[str, str]]()
    for node, held in placements.items():
        deployments = [one.deployment for one in held]
        at_site[_site(node)].update(deployments)
        if not reads.get(node, True):
            plain.update((_region(node), one) for one in deployments)
    held_in = defaultdict[str, set[str]](set)
    for site, deployments in at_site.items():
        held_in[_region(site)] |= deployments
    told, outlived = defaultdict[str, set[str]](set), set[tuple[str, str]]()
    for node, names in published.queues.items():
        region, still = _region(node), at_site.get(_site(node), frozenset[str]())
        told[region].update(names.values())
        if not still.issuperset(names):
            outlived.update((region, name) for one, name in names.items() if one not in still)
    return WantedQueues(
        regions=_heard(snapshot),
        held=_pairs(held_in),
        plain=frozenset(plain),
        declared=frozenset(one.name for one in snapshot.deployments),
        outlived=frozenset(outlived),
        told=_pairs(told),
    )


def _heard(snapshot: Snapshot) -> frozenset[str]:
    regions = set[str]()
    for node in snapshot.nodes:
        if node.region not in regions and node.health.heard:
            regions.add(node.region)
    return frozenset(regions)


def _pairs(by_region: Mapping[str, set[str]]) -> frozenset[tuple[str, str]]:
    return frozenset((region, one) for region, all_ in by_region.items() for one in all_)


def _region(node: str) -> str:
    return node.partition(".")[0]


def _site(node: str) -> str:
    return node.rpartition(".")[0]
