"""A network link between two parts on this machine, which can be cut so that packets vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from busbar_runtime.ports import LOOPBACK

_PIECE_BYTES = 65_536


class Link:
    """Carries connections from its own port to another while it is up.

    Cut, it closes nothing and refuses nothing: what is sent waits, as TCP waits where packets
    vanish, and goes on when the link is back, if somebody is there still.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._up = asyncio.Event()
        self._up.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.port = 0

    def cut(self) -> None:
        """From now on nothing arrives."""
        self._up.clear()

    def restore(self) -> None:
        """From now on everything arrives, what was sent meanwhile too."""
        self._up.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        with suppress(OSError):
            await self._up.wait()
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._target())
            ways = [(reader, far_writer), (far_reader, writer)]
            pumps = [asyncio.create_task(self._pump(*way)) for way in ways]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            far_writer.close()
        writer.close()
        self._carrying.discard(task)

    async def close(self) -> None:
        """Carry nothing any more."""
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                await self._up.wait()
                writer.write(piece)
                await writer.drain()


@asynccontextmanager
async def link(target: Callable[[], int], *, host: str = LOOPBACK) -> AsyncIterator[Link]:
    """A link from an address of this machine to the port that `target` names once one connects."""
    made = Link(target)
    server = await asyncio.start_server(made.accept, host, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
