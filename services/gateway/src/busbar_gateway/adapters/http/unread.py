"""Giving up on a client that takes nothing of its answer."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import sys
import termios
from typing import Final

from busbar_gateway.adapters.http.patience import Patience

_LOOKS: Final = 4
"""How often a connection is looked at in the time that its client has."""
_INT: Final = struct.Struct("i")


class Unread:
    """Aborts a connection of which the client has taken nothing for `timeout_s` while watched."""

    def __init__(
        self, transport: asyncio.Transport, timeout_s: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._loop = loop
        self._patience = Patience(loop)
        self._left_bytes = sys.maxsize
        self._taken_at = 0.0

    def watch(self) -> None:
        """Look from now on, until `rest` or until everything has left."""
        if not self._patience.given(self._look):
            self._left_bytes = sys.maxsize
            self._patience.give(self._timeout_s / _LOOKS, self._look)

    def rest(self) -> None:
        """Look no more."""
        self._patience.take_back()

    def close(self) -> None:
        """Never look again."""
        self._patience.close()

    def _look(self) -> None:
        left_bytes, now = self._transport.get_write_buffer_size(), self._loop.time()
        if not left_bytes:
            return
        left_bytes += self._sent_bytes()
        if left_bytes < self._left_bytes:
            self._taken_at = now
        elif now - self._taken_at >= self._timeout_s:
            self._transport.abort()
            return
        self._left_bytes = left_bytes
        self._patience.give(self._timeout_s / _LOOKS, self._look)

    def _sent_bytes(self) -> int:
        """What the kernel has and the client has not taken (tcp(7), SIOCOUTQ).

        The kernel asks for more only once a third of its buffer, of up to megabytes, is free; a
        client that reads slowly shows here long before.
        """
        try:
            socket = self._transport.get_extra_info("socket")
            return _INT.unpack(fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))[0]
        except OSError:
            return 0
