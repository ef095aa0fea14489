"""GOAWAY to the clients of the native front, which can only cut them off.

Without it a client keeps its connection for as long as the process lives, and its
calls of that moment fail. The frame is written beside the front, to the same
sockets: a send is atomic, and one that goes to a socket with nothing left to send
cannot fall into the middle of another frame, since a frame is only ever split
when a socket is full.
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import struct
from collections.abc import Mapping
from contextlib import closing

import structlog

from busbar_gateway.adapters.grpc.sockets import Connections, Peer, unsent

log = structlog.get_logger()

_GOAWAY_TYPE = 7
_NO_ERROR = 0
_NO_STREAM_REFUSED = 2**31 - 1
_REASON = b"the gateway stops"
GOAWAY = (
    struct.pack(
        ">HBBBIII",
        0,
        8 + len(_REASON),
        _GOAWAY_TYPE,
        0,
        0,
        _NO_STREAM_REFUSED,
        _NO_ERROR,
    )
    + _REASON
)
"""RFC 9113, section 6.8: open no more streams here; those that are open are answered."""
_AGAIN_AFTER_S = 0.02
_RESTS_PER_LOOK = 5
"""With thousands of connections a look takes long; calls are answered meanwhile, and need more of
the event loop's time than it may."""
_AT_LEAST_S = 0.1
_SETTLED_AFTER_S = 0.5
"""A client that is told before it has finished connecting fails what it was about to send."""


async def say_goodbye(port: int, for_s: float) -> None:
    """Tell everybody who is connected to `port`, each once, for a tenth of a second at least,
    since some are being answered at first.

    Who comes while that lasts is served, and told half a second later. Where no file can be
    opened to look, it is tried again, and nobody is told at worst.
    """
    now = asyncio.get_running_loop().time
    tell_at, in_s, ends = dict[Peer, float](), 0.0, now() + max(for_s, _AT_LEAST_S)
    while True:
        failure: OSError | None = None
        began = now()
        try:
            tell_at = await _look(port, tell_at, began, in_s)
        except OSError as error:
            failure = error
        in_s, rest_s = _SETTLED_AFTER_S, ends - now()
        if rest_s <= 0:
            break
        again_s = max(_AGAIN_AFTER_S, _RESTS_PER_LOOK * (now() - began))
        await asyncio.sleep(min(again_s, rest_s))
    if failure:
        log.warning("clients were not told that the gateway stops", reason=str(failure))


async def _look(
    port: int, tell_at: Mapping[Peer, float], now_s: float, in_s: float
) -> dict[Peer, float]:
    """When each who is connected is to be told, after all are whose time has come."""
    connected = dict[Peer, float]()
    with closing(Connections(port)) as connections:
        async for peer, connection in connections:
            at = tell_at.get(peer, now_s + in_s)
            connected[peer] = math.inf if now_s >= at and _tell(connection) else at
    return connected


def _tell(connection: socket.socket) -> bool:
    """Whether it was told; it is not while it has something else to send."""
    if unsent(connection):
        return False
    try:
        return connection.send(GOAWAY, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(GOAWAY)
    except OSError as error:
        return error.errno in {errno.EPIPE, errno.ECONNRESET}
