"""Which nodes that are gone lose what they hold, and how fast they are used again.

A node that is silent for a minute is gone. When a site or a region goes dark at once, its
replicas are placed elsewhere by and by: whoever brings it back soon finds most of them there,
and neither the nodes that take over nor the object store have to load everything together.
The same holds for the site when it is back: empty as it is, everything would be placed there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.pacing import WINDOW_S, Pace

__all__ = ["REGION_SHARE", "RETURN_SHARE", "SITE_SHARE", "WINDOW_S", "Evictions", "Returns"]

SITE_SHARE, REGION_SHARE = 4, 10
"""Within a window one in so many of a site's and of a region's nodes, and one in any case."""
RETURN_SHARE = 4
"""The same for nodes that come back, of their site and of their region."""
_REMEMBERED_S = 86_400.0
"""What does not come back within a day is new when it does."""


@dataclass(slots=True)
class Evictions:
    """Lets go of nodes, the longest silent first. Times are seconds of one monotonic clock."""

    _gone: set[str] = field(default_factory=set[str])
    _pace: Pace = field(default_factory=lambda: Pace(SITE_SHARE, REGION_SHARE))

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
        candidates = overdue.keys() - self._gone
        most = self._pace.most(fleet) if candidates else {}
        for node in sorted(candidates, key=lambda one: (-overdue[one], one)):
            if node not in holding or self._pace.takes(node, most, now):
                self._gone.add(node)
        return frozenset(self._gone)


@dataclass(slots=True)
class Returns:
    """Lets nodes that were given up and are back take something new, by and by."""

    _given_up_at: dict[str, float] = field(default_factory=dict[str, float])
    """Node → when it was last seen to be given up."""
    _pace: Pace = field(default_factory=lambda: Pace(RETURN_SHARE, RETURN_SHARE))

    def look(self, given_up: Collection[str], fleet: Collection[str], now: float) -> frozenset[str]:
        """Return the nodes that are back and take nothing new yet.

        `given_up` are those that are not back, `fleet` is all nodes that are known.
        """
        self._given_up_at |= dict.fromkeys(given_up, now)
        back = [one for one in self._given_up_at.keys() & fleet if one not in given_up]
        most = self._pace.most(fleet) if back else {}
        for node in sorted(back, key=lambda one: (self._given_up_at[one], one)):
            if self._pace.takes(node, most, now):
                del self._given_up_at[node]
        for node, at in list(self._given_up_at.items()):
            if now - at > _REMEMBERED_S:
                del self._given_up_at[node]
        return frozenset(one for one in back if one in self._given_up_at)
