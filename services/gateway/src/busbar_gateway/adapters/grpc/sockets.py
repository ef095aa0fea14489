"""The native front's connections, which it keeps to itself: found among this process's files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

_FILES = "/proc/self/fd"

Peer = str
"""A client's address as the front writes it: `ipv4:127.0.0.1:39206`, `ipv6:[::1]:37842`."""


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir(_FILES))  # noqa: PTH208 (a path for each is not needed)


def connections(port: int) -> Iterator[tuple[Peer, socket.socket]]:
    """This process's connections that were accepted on `port`; each is closed afterwards.

    What is yielded is a duplicate: the connection lives on whatever becomes of it.
    """
    for name in os.listdir(_FILES):  # noqa: PTH208 (a path for each takes twice as long)
        with suppress(OSError):
            if not os.readlink(f"{_FILES}/{name}").startswith("socket:"):  # noqa: PTH115 (the same)
                continue
            with _duplicate(int(name)) as connection:
                if _is_tcp(connection) and connection.getsockname()[1] == port:
                    yield _peer(connection), connection


def _duplicate(descriptor: int) -> socket.socket:
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:  # the front has closed it meanwhile, and it is some other file now
        os.close(duplicate)
        raise


def _peer(connection: socket.socket) -> Peer:
    host, port = connection.getpeername()[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _is_tcp(connection: socket.socket) -> bool:
    internet = connection.family in {socket.AF_INET, socket.AF_INET6}
    return internet and connection.type == socket.SOCK_STREAM
