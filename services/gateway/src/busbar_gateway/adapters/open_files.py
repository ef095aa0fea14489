"""How many files the process may have open, and how many connections that is for each edge.

Without a bound of its own an edge takes connections until no file can be opened any more, for
health probes and the bus as little as for customers.
"""

from __future__ import annotations

from busbar_observability.open_files import OWN_FILES, raise_limit

CONNECTIONS_MAX = 4096
"""Of each edge, where the system allows that many files."""
_FILES_FOR_ONE_OF_EACH = 4
"""A connection over HTTP is one. One over gRPC is up to three: streams go through a socket of our
own to the server behind the front, and both of its ends are ours."""
OPERATIONS_CONNECTIONS_MAX = 128
"""Of the operations listener, which has no share: they are among the gateway's own files."""
_FILES_WANTED = CONNECTIONS_MAX * _FILES_FOR_ONE_OF_EACH + OWN_FILES
_CONNECTIONS_MIN = 16


def make_room() -> int:
    """Raise the soft limit as far as needed and allowed; returns the connections of each edge."""
    return connections_of(raise_limit(_FILES_WANTED))


def connections_of(files: int) -> int:
    """How many connections each edge may have of a process that may have so many files."""
    share = (files - OWN_FILES) // _FILES_FOR_ONE_OF_EACH
    return max(_CONNECTIONS_MIN, min(CONNECTIONS_MAX, share))
