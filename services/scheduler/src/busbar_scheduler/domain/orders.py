"""What operators tell sites and nodes, and what that means as time passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from busbar_scheduler.domain.fleet import Order, Site

_OUT_WITHIN_MS = 5_000
"""What a quarantined node has in hand goes elsewhere after so long."""


@dataclass(frozen=True, slots=True)
class Told:
    """An order as it was given; serving is the absence of one."""

    order: Order
    given_unix_ms: int
    grace_ms: int = 0
    reason: str = ""

    @property
    def drain_within_ms(self) -> int:
        """How long replicas may finish what they have in hand, once they are told to go."""
        if self.order is Order.QUARANTINE:
            return _OUT_WITHIN_MS
        return self.grace_ms // 2 if self.order is Order.DRAIN else 0

    def at(self, now_unix_ms: int) -> Order:
        """What it means now: the first half of a drain's grace is for replacements to load.

        A quarantine that is over stays on record, so that the next one is longer.
        """
        if self.order is Order.QUARANTINE and now_unix_ms - self.given_unix_ms >= self.grace_ms:
            return Order.SERVE
        drains = self.order is Order.DRAIN
        if drains and now_unix_ms - self.given_unix_ms >= self.grace_ms - self.drain_within_ms:
            return Order.VACATE
        return self.order


@dataclass(frozen=True, slots=True)
class Described:
    """A site as the operator described it, with what it and its nodes were told."""

    site: Site
    told: Told | None = None
    nodes: Mapping[str, Told] = field(default_factory=dict[str, Told])
    """Node's own name → what it was told."""
    resumed: Mapping[str, int] = field(default_factory=dict[str, int])
    """Node's own name → when it was last told to serve again, Unix time in milliseconds."""

    def site_at(self, now_unix_ms: int) -> Site:
        """The site with the order that holds now."""
        return replace(self.site, order=self.told.at(now_unix_ms) if self.told else Order.SERVE)

    def telling(self, node: str, told: Told | None) -> Described:
        """The same after telling the whole site (node "") or one of its nodes; None: serve."""
        if not node:
            return replace(self, told=told)
        others = {name: one for name, one in self.nodes.items() if name != node}
        return replace(self, nodes={**others, node: told} if told else others)

    def resuming(self, node: str, now_unix_ms: int) -> Described:
        """The same after telling a node to serve again, whatever it was told."""
        return replace(self.telling(node, None), resumed={**self.resumed, node: now_unix_ms})

    def resumed_since(self, before: Described) -> list[str]:
        """Nodes that were told so meanwhile."""
        return [node for node, at in self.resumed.items() if before.resumed.get(node) != at]
