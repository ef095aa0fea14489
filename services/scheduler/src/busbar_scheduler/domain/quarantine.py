"""Which nodes are broken although they live, and for how long they are kept out.

Only what customers cannot bring about by what they send counts: silence about work in hand,
answers that cannot be read, a Triton that is lost again and again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.fleet import Order
from busbar_scheduler.domain.orders import Described, Told

LOST_MAX = 3
GARBLED_MAX = 5
TRITONS_LOST_MAX = 3
TRITONS_LOST_WITHIN_S = 300.0
SETTLED_AFTER_S = 5.0
"""A node has to be well for this long before what gateways say of it counts, and for as long
again after it fell silent: gateways notice that a node died before its lease is over."""
FIRST_MS, LONGEST_MS = 60_000, 3_600_000
APART_MS = 60_000
"""The least time between two quarantines at one site."""
_SHARE_OUT_MAX = 4
"""Of a site's nodes, one in so many may be out at a time, and one in any case."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of a node at one moment."""

    run_id: str
    well: bool
    """Whether it holds its lease and takes work."""
    lost_count: int = 0
    """Attempts in a row that it fell silent about, over all gateways."""
    garbled_count: int = 0
    """Its answers in a row that could not be read, over all gateways."""
    tritons_lost: int = 0
    """Since its agent started."""
    triton_reason: str = ""


@dataclass(slots=True)
class _File:
    """What is held against one run of a node's agent."""

    run_id: str
    lost_before: int
    garbled_before: int
    tritons_before: int
    well_since: float | None = None
    silent_since: float | None = None
    tritons_lost_at: deque[float] = field(default_factory=deque[float])


class Suspicions:
    """Watches every node; times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def look(self, fleet: Mapping[str, Vitals], now: float) -> dict[str, str]:
        """Nodes that are broken as far as can be told, each with the reason."""
        for gone in self._files.keys() - fleet.keys():
            del self._files[gone]
        reasons = {node: self._judge(node, vitals, now) for node, vitals in fleet.items()}
        return {node: reason for node, reason in reasons.items() if reason}

    def forgive(self, node: str) -> None:
        """What was held against a node has had its consequence."""
        self._files.pop(node, None)

    def _judge(self, node: str, vitals: Vitals, now: float) -> str:
        held = self._files.get(node)
        if held is None or held.run_id != vitals.run_id:
            held = self._files[node] = _File(
                vitals.run_id, vitals.lost_count, vitals.garbled_count, vitals.tritons_lost
            )
        return _tritons(held, vitals, now) or _outcomes(held, vitals, now)


def _tritons(held: _File, vitals: Vitals, now: float) -> str:
    more = min(max(0, vitals.tritons_lost - held.tritons_before), TRITONS_LOST_MAX)
    held.tritons_before = vitals.tritons_lost
    held.tritons_lost_at.extend([now] * more)
    while held.tritons_lost_at and now - held.tritons_lost_at[0] > TRITONS_LOST_WITHIN_S:
        held.tritons_lost_at.popleft()
    if len(held.tritons_lost_at) < TRITONS_LOST_MAX:
        return ""
    minutes = round(TRITONS_LOST_WITHIN_S / 60)
    last = f": {vitals.triton_reason}" if vitals.triton_reason else ""
    return f"its Triton was lost {len(held.tritons_lost_at)} times within {minutes} minutes{last}"


def _outcomes(held: _File, vitals: Vitals, now: float) -> str:
    """What gateways hold against it since it is well; before that it is a node that died."""
    settled = held.well_since is not None and now - held.well_since >= SETTLED_AFTER_S
    if not vitals.well or not settled:
        held.lost_before, held.garbled_before = vitals.lost_count, vitals.garbled_count
        held.silent_since = None
        if not vitals.well:
            held.well_since = None
        elif held.well_since is None:
            held.well_since = now
        return ""
    held.lost_before = min(held.lost_before, vitals.lost_count)
    held.garbled_before = min(held.garbled_before, vitals.garbled_count)
    lost = vitals.lost_count - held.lost_before
    garbled = vitals.garbled_count - held.garbled_before
    if lost < LOST_MAX:
        held.silent_since = None
    elif held.silent_since is None:
        held.silent_since = now
    elif now - held.silent_since >= SETTLED_AFTER_S:
        return f"it holds its lease, but fell silent about {lost} requests in a row"
    if garbled >= GARBLED_MAX:
        return f"{garbled} of its answers in a row could not be read"
    return ""


def sentence(described: Described, node: str, reason: str, now_unix_ms: int) -> Told | None:
    """What to tell a node of a site that is broken; None when the operator was there before."""
    before = described.nodes.get(node)
    if before is None:
        return Told(Order.QUARANTINE, now_unix_ms, FIRST_MS, reason)
    if before.order is not Order.QUARANTINE or before.at(now_unix_ms) is Order.QUARANTINE:
        return None
    over_for_ms = now_unix_ms - before.given_unix_ms - before.grace_ms
    again = over_for_ms < max(before.grace_ms, round(TRITONS_LOST_WITHIN_S * 1000))
    lasts_ms = min(2 * before.grace_ms, LONGEST_MS) if again else FIRST_MS
    return Told(Order.QUARANTINE, now_unix_ms, lasts_ms, reason)


def room_for_one_more(described: Described, nodes_at_site: int, now_unix_ms: int) -> bool:
    """Whether a site may lose another node to quarantine: whoever is wrong, not all go at once."""
    told = [one for one in described.nodes.values() if one.order is Order.QUARANTINE]
    if any(now_unix_ms - one.given_unix_ms < APART_MS for one in told):
        return False
    out = sum(one.at(now_unix_ms) is Order.QUARANTINE for one in told)
    return out < max(1, nodes_at_site // _SHARE_OUT_MAX)
