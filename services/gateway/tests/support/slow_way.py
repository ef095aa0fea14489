"""A client's network that takes its time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from busbar_messaging.background import end

SLOW_BYTES = 32_768


@contextlib.asynccontextmanager
async def slow_way(to: int, every_s: float = 0.005) -> AsyncIterator[int]:
    """A port that leads there, and takes what comes back 32 KiB at a time."""
    ways = set[asyncio.Task[Any]]()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(SLOW_BYTES):
                writer.write(data)
                await writer.drain()

    async def pass_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(SLOW_BYTES):
                writer.write(data)
                await asyncio.sleep(every_s)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", to))
        there, back = await asyncio.open_connection(sock=narrow, limit=SLOW_BYTES)
        both = pass_on(reader, back), pass_back(there, writer)
        ways.update(map(asyncio.create_task, both))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await end(ways)
