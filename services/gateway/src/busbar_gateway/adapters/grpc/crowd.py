"""A bound on the connections of the native front, which has none.

Where there are too many, those that never sent anything are cut first, then those over which
nothing came or left for longest, those with a unary call in hand last. A client that was idle
connects anew.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import structlog
from busbar_messaging.background import rest_s

from busbar_gateway.adapters.grpc.sockets import Connections, Peer, open_files

log = structlog.get_logger()

_LOOK_EVERY_S = 0.5
_INFO_BYTES = 136
_SENT_MS_AGO_AT, _RECEIVED_MS_AGO_AT, _RECEIVED_BYTES_AT = 44, 52, 128
"""Offsets of tcpi_last_data_sent, tcpi_last_data_recv and tcpi_bytes_received in struct tcp_info,
linux/tcp.h."""


async def keep_out(
    connections: Connections, connections_max: int, served: Callable[[], set[Peer]]
) -> None:
    """Look twice a second, for ever, that there are no more connections than that.

    Who is `served` says nothing until the answer is there.
    """
    while True:
        await asyncio.sleep(rest_s(_LOOK_EVERY_S))
        try:
            await _look(connections, connections_max, served)
        except Exception:
            log.exception("gRPC connections could not be counted")


async def _look(
    connections: Connections, connections_max: int, served: Callable[[], set[Peer]]
) -> None:
    if len(open_files()) <= connections_max:
        return
    worth = {peer: _worth(connection) async for peer, connection in connections}
    too_many = len(worth) - connections_max
    if too_many <= 0:
        return
    busy = served()
    least = set(sorted(worth, key=lambda peer: (peer in busy, *worth[peer]))[:too_many])
    cut = 0
    async for peer, connection in connections:
        cut += peer in least and _shut(connection)
    log.warning("too many gRPC connections: cut", cut=cut, connections_max=connections_max)


def _worth(connection: socket.socket) -> tuple[bool, int]:
    """The least goes first."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    (sent_ms_ago,) = struct.unpack_from("=I", info, _SENT_MS_AGO_AT)
    (received_ms_ago,) = struct.unpack_from("=I", info, _RECEIVED_MS_AGO_AT)
    (received_bytes,) = struct.unpack_from("=Q", info, _RECEIVED_BYTES_AT)
    return received_bytes > 0, -min(sent_ms_ago, received_ms_ago)


def _shut(connection: socket.socket) -> bool:
    try:
        connection.shutdown(socket.SHUT_RDWR)  # the front closes what it cannot read from
    except OSError:
        return False
    return True
