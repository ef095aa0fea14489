"""A balancer of TCP connections, as stands before the gateways of a region.

It does what a Kubernetes service or HAProxy does: asks each gateway whether it is
ready, gives new connections to those that are, in turn, and leaves connections
that are open alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx

LOOPBACK = "127.0.0.1"
_LOOK_EVERY_S = 0.1
_PIECE_BYTES = 64 * 1024


@dataclass
class Backend:
    """One gateway: where it listens, and where it says that it is ready."""

    http: str
    grpc: str
    ops: str
    ready: bool = False

    async def look(self, client: httpx.AsyncClient) -> None:
        try:
            self.ready = (await client.get(f"{self.ops}/readyz")).is_success
        except httpx.HTTPError:
            self.ready = False


@dataclass
class Balancer:
    """Where clients connect to, and whom they are connected with."""

    backends: Sequence[Backend]
    http: str = ""
    grpc: str = ""
    _turn: itertools.count[int] = field(default_factory=itertools.count)
    _open: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def listen(self, protocol: Literal["http", "grpc"]) -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            await self._serve(protocol, reader, writer)

        return await asyncio.start_server(connected, LOOPBACK, 0)

    async def look_for_ever(self) -> None:
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=2) as client:
            while True:
                await asyncio.gather(*(backend.look(client) for backend in self.backends))
                await asyncio.sleep(_LOOK_EVERY_S)

    async def hang_up(self) -> None:
        """Cut every connection."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _candidates(self) -> list[Backend]:
        ready = [backend for backend in self.backends if backend.ready] or list(self.backends)
        first = next(self._turn) % len(ready)
        return [*ready[first:], *ready[:first]]

    async def _serve(
        self,
        protocol: Literal["http", "grpc"],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            for backend in self._candidates():
                host, _, port = getattr(backend, protocol).removeprefix("http://").rpartition(":")
                with contextlib.suppress(OSError):
                    theirs = await asyncio.open_connection(host, int(port))
                    await _join((reader, writer), theirs)
                    return
        finally:
            writer.close()


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(mine: _Ends, theirs: _Ends) -> None:
    """Pass on what either side sends until one of them ends."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                writer.write(piece)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    await asyncio.gather(pass_on(mine[0], theirs[1]), pass_on(theirs[0], mine[1]))


@contextlib.asynccontextmanager
async def balancer(backends: Sequence[Backend]) -> AsyncIterator[Balancer]:
    """Run one before these gateways until the end of the block."""
    made = Balancer(backends)
    http, grpc = await made.listen("http"), await made.listen("grpc")
    made.http = f"http://{LOOPBACK}:{http.sockets[0].getsockname()[1]}"
    made.grpc = f"{LOOPBACK}:{grpc.sockets[0].getsockname()[1]}"
    looking = asyncio.create_task(made.look_for_ever())
    try:
        yield made
    finally:
        looking.cancel()
        for server in (http, grpc):
            server.close()
        await made.hang_up()
