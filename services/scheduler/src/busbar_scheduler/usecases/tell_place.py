"""Describing sites, and telling them and their nodes how they are to be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from busbar_errors import Conflict

from busbar_scheduler.domain.fleet import Site
from busbar_scheduler.domain.orders import Described, Told
from busbar_scheduler.usecases.ports import Sites

_ATTEMPTS_MAX = 5


async def describe(sites: Sites, site: Site) -> Described:
    """What feeds a site and what it costs; what it was told stays."""
    return await _change(sites, site.key, lambda before: replace(before, site=site))


async def tell(sites: Sites, site: str, node: str, told: Told | None) -> Described:
    """Tell a site (node "") or one of its nodes; None means to serve again."""
    return await _change(sites, site, lambda before: before.telling(node, told))


async def resume(sites: Sites, site: str, node: str, now_unix_ms: int) -> Described:
    """Tell a node to serve again: what was held against it has had its consequence."""
    return await _change(sites, site, lambda before: before.resuming(node, now_unix_ms))


async def _change(sites: Sites, key: str, change: Callable[[Described], Described]) -> Described:
    """Change what stands there, again when somebody else was faster."""
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        described = change(sites.described(key))
        try:
            await sites.put_site(described)
        except Conflict:
            if attempt == _ATTEMPTS_MAX:
                raise
        else:
            return described
    raise AssertionError("unreachable")
