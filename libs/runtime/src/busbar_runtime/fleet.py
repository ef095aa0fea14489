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
HUB_SERVERS = (1, 3)
LINKS = ("cluster", "gateway", "leaf")


@dataclass(frozen=True)
class Hub:
    """One of a region's NATS servers."""

    region: str
    number: int

    @property
    def name(self) -> str:
        """Its process."""
        name = "nats" if self.region == REGIONS[0] else f"nats-{self.region}"
        return f"{name}{self._suffix}"

    def listener(self, link: str) -> str:
        """Where it takes one of `LINKS`."""
        return f"nats-{link}-{self.region}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "" if self.number == 1 else f"-{self.number}"


@dataclass(frozen=True)
class Fleet:
    """`nodes`, one a site; `leaf_nodes`: whether each site has a NATS of its own; `hub_servers`:
    how many NATS servers each region has.
    """

    nodes: Sequence[NodeId]
    leaf_nodes: bool
    hub_servers: int = 1

    @classmethod
    def of(cls, sites: int, hub_servers: int = 1) -> Fleet:
        """A fleet of that many sites, in turns of either region; 0: one node and no site's NATS."""
        if hub_servers not in HUB_SERVERS:
            raise ValueError(f"{hub_servers} servers a region: give one of {HUB_SERVERS}")
        if sites == 0:
            if hub_servers > 1:
                raise ValueError("more than one server a region needs sites")
            return cls([NodeId(REGIONS[0], "s1", "n1")], leaf_nodes=False)
        # A lone server of a cluster has nobody to elect it.
        sites_min = len(REGIONS) if hub_servers == 1 else 1
        if not sites_min <= sites <= SITES_MAX:
            raise ValueError(f"{sites} sites: give {sites_min} to {SITES_MAX}, or none")
        names = [(REGIONS[number % len(REGIONS)], f"s{number + 1}") for number in range(sites)]
        nodes = [NodeId(region, site, "n1") for region, site in names]
        return cls(nodes, leaf_nodes=True, hub_servers=hub_servers)

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
    def hubs(self) -> Sequence[Hub]:
        """Every server of every region; services use the first."""
        numbers = range(1, self.hub_servers + 1)
        return [Hub(region, number) for region in self.regions for number in numbers]

    def hubs_of(self, region: str) -> Sequence[Hub]:
        """The servers of one region."""
        return [hub for hub in self.hubs if hub.region == region]

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
        hubs = [hub.name for hub in self.hubs]
        more = [name for name in [*hubs, *self.leaves] if name != "nats"]
        links = [hub.listener(link) for hub in self.hubs for link in LINKS]
        return [*agents, *more, *[f"{name}-monitor" for name in more], *links]
