"""Which regions, sites and nodes a platform has, and what their parts are called.

By default one node, on the one NATS that everything uses. With sites, each has a NATS of its own, a
leaf node of its region's, and one node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from busbar_messaging.topology import NodeId

SITES_MAX = 8  # each has a Triton
REGIONS = ("r1", "r2")


@dataclass(frozen=True)
class Fleet:
    """`nodes`, one a site; `leaf_nodes`: whether each site has a NATS of its own."""

    nodes: Sequence[NodeId]
    leaf_nodes: bool

    @classmethod
    def of(cls, sites: int) -> Fleet:
        """A fleet of that many sites, in turns of either region; 0: one node and no site's NATS."""
        if sites == 0:
            return cls([NodeId(REGIONS[0], "s1", "n1")], leaf_nodes=False)
        if not len(REGIONS) <= sites <= SITES_MAX:
            # A lone server of a cluster has nobody to elect it.
            raise ValueError(f"{sites} sites: give {len(REGIONS)} to {SITES_MAX}, or none")
        names = [(REGIONS[number % len(REGIONS)], f"s{number + 1}") for number in range(sites)]
        return cls([NodeId(region, site, "n1") for region, site in names], leaf_nodes=True)

    @property
    def regions(self) -> list[str]:
        return sorted({node.region for node in self.nodes})

    @property
    def sites(self) -> list[str]:
        """As "region/site"."""
        return [f"{node.region}/{node.site}" for node in self.nodes]

    @property
    def agents(self) -> Mapping[str, NodeId]:
        """Which node each agent's process is."""
        if not self.leaf_nodes:
            return {"node-agent": self.nodes[0]}
        return {f"node-agent-{node.site}": node for node in self.nodes}

    @property
    def hubs(self) -> Mapping[str, str]:
        """Region → process; services use the first."""
        return {region: hub_name(region) for region in self.regions}

    @property
    def leaves(self) -> Mapping[str, NodeId]:
        """Process → node."""
        return {f"nats-{node.site}": node for node in self.nodes} if self.leaf_nodes else {}

    @property
    def listeners(self) -> list[str]:
        """What listens besides the parts that every platform has once."""
        agents = [f"{agent}-ops" for agent in self.agents]
        if not self.leaf_nodes:
            return agents
        more = [name for name in [*self.hubs.values(), *self.leaves] if name != "nats"]
        links = [
            f"nats-{link}-{region}"
            for region in self.regions
            for link in ("cluster", "gateway", "leaf")
        ]
        return [*agents, *more, *[f"{name}-monitor" for name in more], *links]


def hub_name(region: str) -> str:
    """The process of a region's NATS."""
    return "nats" if region == REGIONS[0] else f"nats-{region}"
