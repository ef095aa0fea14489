"""Which nodes that are gone lose what they hold, and how fast.

A node that is silent for a minute is gone. When a site or a region goes dark at once, its
replicas are placed elsewhere by and by: whoever brings it back soon finds most of them there,
and neither the nodes that take over nor the object store have to load everything together.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

WINDOW_S = 15.0
SITE_SHARE, REGION_SHARE = 4, 10
"""Within a window one in so many of a site's and of a region's nodes, and one in any case."""


@dataclass(slots=True)
class Evictions:
    """Lets go of nodes, the longest silent first. Times are seconds of one monotonic clock."""

    _gone: set[str] = field(default_factory=set[str])
    _let_go_at: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict[str, deque[float]](deque)
    )
    """Site or region → when nodes of it were let go within the window."""

    def look(
        self,
        overdue: Mapping[str, float],
        fleet: Collection[str],
        holding: Collection[str],
        now: float,
    ) -> frozenset[str]:
        """Return the nodes that are given up; they stay so until they are heard of again.

        `overdue` says for how long those have been silent that could be given up, `fleet` is all
        nodes and `holding` those on which something is placed: the others cost nothing.
        """
        self._gone &= overdue.keys()
        self._forget(now)
        candidates = overdue.keys() - self._gone
        most = _most(fleet) if candidates else {}
        for node in sorted(candidates, key=lambda one: (-overdue[one], one)):
            if node in holding:
                places = _places(node)
                if any(len(self._let_go_at[place]) >= most[place] for place in places):
                    continue
                for place in places:
                    self._let_go_at[place].append(now)
            self._gone.add(node)
        return frozenset(self._gone)

    def _forget(self, now: float) -> None:
        for place, moments in list(self._let_go_at.items()):
            while moments and now - moments[0] >= WINDOW_S:
                moments.popleft()
            if not moments:
                del self._let_go_at[place]


def _places(node: str) -> tuple[str, str]:
    """A node's site and region: "region.site.node" is at "region.site" in "region"."""
    site = node.rpartition(".")[0]
    return site, site.partition(".")[0]


def _most(fleet: Collection[str]) -> dict[str, int]:
    """How many nodes of each site and region may be let go within a window."""
    counts = Counter[str]()
    for node in fleet:
        counts.update(_places(node))
    return {
        place: -(-count // (SITE_SHARE if "." in place else REGION_SHARE))
        for place, count in counts.items()
    }
