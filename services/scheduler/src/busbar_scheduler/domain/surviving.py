"""N+1: how many replicas, and how many of them at one site, so that enough are left without it.

With at most `c` at any site, n + c replicas leave n whichever site is lost. The smallest
such c needs the fewest spare replicas; a larger one may need fewer sites.
"""

from __future__ import annotations

from collections.abc import Iterator

from busbar_scheduler.domain.arrays import Indices


def survivors(per_site: Indices) -> int:
    """Replicas that are left when the site that holds most is lost."""
    return int(per_site.sum() - per_site.max(initial=0))


def shapes(promised: int, held: Indices, could_hold: Indices) -> Iterator[tuple[int, int]]:
    """(most at one site, replicas in all) that keep the promise, the fewest spares first.

    `held` is kept as it is; `could_hold` counts it in.
    """
    for most in range(max(1, int(held.max(initial=0))), promised + 1):
        if int(could_hold.clip(max=most).sum()) >= promised + most:
            yield most, promised + most


def best_effort(promised: int, could_hold: Indices) -> int:
    """The limit per site that leaves most replicas when no shape keeps the promise."""
    return max(
        range(1, promised + 1),
        key=lambda most: (int(could_hold.clip(max=most).sum()) - most, -most),
        default=1,
    )
