"""Who may know what the queues of work are called: to know a queue's name is to pull from it."""

from __future__ import annotations

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
    sites: dict[tuple[str, str], set[str]] = {}
    plain = set[tuple[str, str]]()
    for node, held in placements.items():
        region, site = _region(node), _site(node)
        for one in held:
            queue = region, one.deployment
            sites.setdefault(queue, set()).add(site)
            if not reads.get(node, True):
                plain.add(queue)
    outlived = {
        (_region(node), name)
        for node, names in published.queues.items()
        for deployment, name in names.items()
        if _site(node) not in sites.get((_region(node), deployment), ())
    }
    return WantedQueues(
        regions=frozenset(node.region for node in snapshot.nodes if node.health.heard),
        held=frozenset(sites),
        plain=frozenset(plain),
        declared=frozenset(one.name for one in snapshot.deployments),
        outlived=frozenset(outlived),
        told=frozenset(
            (_region(node), name)
            for node, names in published.queues.items()
            for name in names.values()
        ),
    )


def _region(node: str) -> str:
    return node.partition(".")[0]


def _site(node: str) -> str:
    return node.rpartition(".")[0]
