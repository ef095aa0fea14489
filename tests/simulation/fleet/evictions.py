"""Whether nodes that are gone lose what they hold as decision 42 says: by and by, and surely."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping

from busbar_scheduler.domain.evicting import REGION_SHARE, SITE_SHARE, WINDOW_S
from busbar_scheduler.domain.health import EVICT_AFTER

from simulation.fleet.promises import Promises

_AT_ONCE = {2: SITE_SHARE, 1: REGION_SHARE}
"""Parts of a place's name → one in so many of its nodes within a window."""
GIVEN_UP_WITHIN_S = 300.0
"""Four minutes for a whole region, and a scheduler that looks every few seconds."""


class Evicted:
    """Counts what was taken from silent nodes, and when."""

    def __init__(self, nodes: Iterable[str], promises: Promises) -> None:
        self._promises = promises
        self._nodes = Counter(place for node in nodes for place in _places(node))
        self._at = dict[str, deque[float]]()

    def restarted(self) -> None:
        """Another scheduler leads, which counts anew."""
        self._at.clear()

    def look(
        self, silent_s: Mapping[str, float], held: set[str], holding: set[str], now: float
    ) -> None:
        """Nodes `held` something before this plan, and those of `holding` still do."""
        for node in held - holding:
            since_s = silent_s.get(node, 0.0)
            gone = since_s >= EVICT_AFTER.total_seconds()
            self._promises.hold("a blip moves nothing", gone, f"{node} after {since_s:.1f} s")
            for place in _places(node):
                self._count(place, now)
        for node, since_s in silent_s.items():
            given_up = node not in holding or since_s <= GIVEN_UP_WITHIN_S
            what = f"{node} after {since_s:.0f} s"
            self._promises.hold("who is gone is given up", given_up, what)

    def _count(self, place: str, now: float) -> None:
        moments = self._at.setdefault(place, deque())
        while moments and now - moments[0] >= WINDOW_S:
            moments.popleft()
        moments.append(now)
        most = -(-self._nodes[place] // _AT_ONCE[place.count(".") + 1])
        what = f"{len(moments)} within {WINDOW_S:.0f} s at {place}"
        self._promises.hold("nodes are given up by and by", len(moments) <= most, what)


def _places(node: str) -> tuple[str, str]:
    region, site, _ = node.split(".")
    return region, f"{region}.{site}"
