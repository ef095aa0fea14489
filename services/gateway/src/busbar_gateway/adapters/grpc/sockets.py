"""The native front's connections, which it keeps to itself: found among this process's files."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import socket
import stat
import struct
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

_FILES = "/proc/self/fd"
_AT_ONCE = 64
"""So many files are looked at in a row, which takes about a millisecond."""

Peer = str
"""A client's address as the front writes it: `ipv4:127.0.0.1:39206`, `ipv6:[::1]:37842`."""


def open_files() -> Sequence[int]:
    """The descriptors of all files that this process has open."""
    try:
        return [int(name) for name in os.listdir(_FILES)]  # noqa: PTH208 (a path for each is slow)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return range(soft)  # the listing is a file, too, and none is left: each descriptor is taken


class Connections:
    """This process's connections that were accepted on `port`.

    Each comes as a duplicate, which is good until the next comes; the connection lives on
    whatever becomes of it. Two descriptors are kept for that, since who looks because no more
    can be opened could not make one.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._nothing, self._duplicate = os.pipe()

    def close(self) -> None:
        """Give the two descriptors back."""
        os.close(self._duplicate)
        os.close(self._nothing)

    async def __aiter__(self) -> AsyncIterator[tuple[Peer, socket.socket]]:
        """Between some and the next the event loop has its turn."""
        for count, descriptor in enumerate(open_files(), start=1):
            with suppress(OSError):  # the front may close it meanwhile, and it be another file
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.dup2(descriptor, self._duplicate, inheritable=False)
                    connection = socket.socket(fileno=self._duplicate)
                    try:
                        if _is_tcp(connection) and connection.getsockname()[1] == self._port:
                            yield _peer(connection), connection
                    finally:
                        connection.detach()
            os.dup2(self._nothing, self._duplicate, inheritable=False)
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)


def unsent(connection: socket.socket) -> int:
    """How many bytes were written to it that its peer has not acknowledged."""
    return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]


def _peer(connection: socket.socket) -> Peer:
    host, port = connection.getpeername()[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _is_tcp(connection: socket.socket) -> bool:
    internet = connection.family in {socket.AF_INET, socket.AF_INET6}
    return internet and connection.type == socket.SOCK_STREAM
