"""How many files a process may have open, and how many connections that is for each listener.

A shell gives it 1,024, a few full listeners take more: then none is left for anybody, health
probes, the database and the bus included.
"""

from __future__ import annotations

import resource

import structlog

from busbar_observability.bounded import CONNECTIONS_MAX

log = structlog.get_logger()

OWN_FILES = 256
"""The bus, the database, what is kept on disk; a hundred are in use."""
_CONNECTIONS_MIN = 16


def raise_limit(files_wanted: int) -> int:
    """Raise the soft limit as far as wanted and allowed; returns how many files may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = files_wanted if hard == resource.RLIM_INFINITY else min(hard, files_wanted)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < files_wanted:
        log.warning(
            "few files may be open, so few connections: raise the limit (ulimit -n)",
            files_max=allowed,
            files_wanted=files_wanted,
        )
    return allowed


def make_room(listeners: int) -> int:
    """Raise the limit to what so many listeners take; returns the connections of each."""
    files = raise_limit(listeners * CONNECTIONS_MAX + OWN_FILES)
    return max(_CONNECTIONS_MIN, min(CONNECTIONS_MAX, (files - OWN_FILES) // listeners))
