"""Which part of a deployment's slots this gateway may fill, among all gateways of all regions.

Every gateway works it out from the same heartbeats, so that nobody has to weigh for them. A
region's slots are its own gateways' first, in equal parts. What they do not ask for is lent to
the gateways of the other regions, most to those who have too few slots at home. Given what was
last said, nothing is given away twice; see decision 41 for what that may be wrong by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PART_LEAST = 0.01
"""Of a slot: whoever may fill none at present may have one request out all the same."""
_CLAIM_WITHOUT_NEED = 1.0
"""So that the first request of a gateway that asked for nothing finds a slot, too."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway and what it asks of one deployment."""

    region: str
    demand: int
    """Requests in flight and waiting."""


def allot(slots: Mapping[str, int], own: Peer, others: Sequence[Peer]) -> dict[str, float]:
    """Return the slots by region that the gateway `own` may fill; `slots` are the ready ones."""
    if not others:
        return dict(slots)
    everybody = [own, *others]
    home = {region: _home_part(region, slots, everybody) for region in _regions(everybody)}
    parts = dict[str, float]()
    for region, ready in slots.items():
        if region == own.region:
            parts[region] = home[region]
            continue
        used = sum(min(peer.demand, home[region]) for peer in everybody if peer.region == region)
        guests = [peer for peer in everybody if peer.region != region]
        claims = sum(_claim(peer, home) for peer in guests)
        parts[region] = (ready - used) * _claim(own, home) / claims
    return parts


def _regions(peers: Iterable[Peer]) -> set[str]:
    return {peer.region for peer in peers}


def _home_part(region: str, slots: Mapping[str, int], peers: Iterable[Peer]) -> float:
    return slots.get(region, 0) / sum(peer.region == region for peer in peers)


def _claim(guest: Peer, home: Mapping[str, float]) -> float:
    """What weight a gateway has in regions that are not its own: what it lacks at home."""
    return _CLAIM_WITHOUT_NEED + max(0.0, guest.demand - home[guest.region])
