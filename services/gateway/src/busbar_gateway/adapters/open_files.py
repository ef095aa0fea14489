"""How many files the process may have open, and how many connections that is for each edge.

Without a bound of its own an edge takes connections until no file can be opened any more, for
health probes and the bus as little as for customers.
"""

from __future__ import annotations

import resource

import structlog

log = structlog.get_logger()

CONNECTIONS_MAX = 4096
"""Of each edge, where the system allows that many files."""
_FILES_FOR_ONE_OF_EACH = 4
"""A connection over HTTP is one. One over gRPC is up to three: streams go through a socket of our
own to the server behind the front, and both of its ends are ours."""
_OWN_FILES = 256
"""The bus, the operations listener, what is kept on disk; a hundred are in use."""
_FILES_WANTED = CONNECTIONS_MAX * _FILES_FOR_ONE_OF_EACH + _OWN_FILES
_CONNECTIONS_MIN = 16


def make_room() -> int:
    """Raise the soft limit as far as needed and allowed; returns the connections of each edge."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    connections = connections_of(allowed)
    if connections < CONNECTIONS_MAX:
        log.warning(
            "few files may be open, so few connections: raise the limit (ulimit -n)",
            connections_max=connections,
            files_max=allowed,
            files_wanted=_FILES_WANTED,
        )
    return connections


def connections_of(files: int) -> int:
    """How many connections each edge may have of a process that may have so many files."""
    share = (files - _OWN_FILES) // _FILES_FOR_ONE_OF_EACH
    return max(_CONNECTIONS_MIN, min(CONNECTIONS_MAX, share))
