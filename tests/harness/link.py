"""A network link between two parts on this machine, which can be cut so that packets vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from busbar_runtime.ports import LOOPBACK

_PIECE_BYTES = 65_536

Filter = Callable[[bytes], bytes]
"""Takes what one end sends, piece by piece, and gives what of it arrives."""


def _all_of_it(piece: bytes) -> bytes:
    return piece


class Link:
    """Carries connections from its own port to another while it is up.

    Cut, it closes nothing and refuses nothing: what is sent waits, as TCP waits where packets
    vanish, and goes on when the link is back, if somebody is there still.
    """

    def __init__(
        self, target: Callable[[], int], new_filter: Callable[[], Filter], back: Filter
    ) -> None:
        self._target = target
        self._new_filter = new_filter
        self._back = back
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
            there = self._pump(reader, far_writer, self._new_filter())
            back = self._pump(far_reader, writer, self._back)
            pumps = [asyncio.create_task(way) for way in (there, back)]
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

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: Filter
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                await self._up.wait()
                writer.write(passes(piece))
                await writer.drain()


@asynccontextmanager
async def link(
    target: Callable[[], int],
    *,
    host: str = LOOPBACK,
    new_filter: Callable[[], Filter] = lambda: _all_of_it,
    back: Filter = _all_of_it,
) -> AsyncIterator[Link]:
    """A link from an address of this machine to the port that `target` names once one connects.

    What each connection sends there passes through a filter of its own, and what comes back
    through `back`, whichever connection it is of.
    """
    made = Link(target, new_filter, back)
    server = await asyncio.start_server(made.accept, host, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
