"""Which region a request is sent to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from busbar_gateway.domain.routes import Target


def choose_region(
    targets: Sequence[Target], own_region: str, in_flight: Mapping[str, int]
) -> str | None:
    """Return the own region while it has a free slot, else the one with most free slots.

    None when nothing is ready. `in_flight` counts what this gateway has out, by region.
    """
    best: Target | None = None
    best_free = 0
    for target in targets:
        if target.ready_slots <= 0:
            continue
        free = target.ready_slots - in_flight.get(target.region, 0)
        if target.region == own_region and free > 0:
            return own_region
        if best is None or free > best_free:
            best, best_free = target, free
    return best.region if best else None
