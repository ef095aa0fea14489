"""How many nodes of a site and of a region something may happen to within a while."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

WINDOW_S = 15.0


@dataclass(slots=True)
class Pace:
    """Within a window one in so many of a site's and of a region's nodes, and one in any case.

    Times are seconds of one monotonic clock.
    """

    site_share: int
    region_share: int
    _taken_at: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict[str, deque[float]](deque)
    )
    """Site or region → when it happened to nodes of it within the window."""

    def most(self, fleet: Collection[str]) -> Mapping[str, int]:
        """How many nodes of each site and region it may happen to; `fleet` is all nodes."""
        counts = Counter[str]()
        for node in fleet:
            counts.update(_places(node))
        return {
            place: -(-count // (self.site_share if "." in place else self.region_share))
            for place, count in counts.items()
        }

    def takes(self, node: str, most: Mapping[str, int], now: float) -> bool:
        """Whether it happens to this node now, which is counted then."""
        places = _places(node)
        for place in places:
            moments = self._taken_at[place]
            while moments and now - moments[0] >= WINDOW_S:
                moments.popleft()
        if any(len(self._taken_at[place]) >= most[place] for place in places):
            return False
        for place in places:
            self._taken_at[place].append(now)
        return True


def _places(node: str) -> tuple[str, str]:
    """A node's site and region: "region.site.node" is at "region.site" in "region"."""
    site = node.rpartition(".")[0]
    return site, site.partition(".")[0]
