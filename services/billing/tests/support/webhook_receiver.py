"""A receiver of webhooks that behaves as it is told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from busbar_runtime.ports import LOOPBACK
from harness.polling import eventually

Behaviour = int | Literal["close", "hang", "half-head", "half-body", "flood"]
"""A status, or what is not one; all but `close` end in silence."""


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came, and what to answer next; 204 when nothing is said."""

    url: str = ""
    port: int = 0
    answers: list[Behaviour] = field(default_factory=list[Behaviour])
    location: str = ""
    received: list[Received] = field(default_factory=list[Received])

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request and answer it."""
        try:
            head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            fields = [line.partition(": ") for line in lines if line]
            headers = {name.lower(): value for name, _, value in fields}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.received.append(Received(head.split(" ")[1], headers, body))
            await self._answer(writer, self.answers.pop(0) if self.answers else 204)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, behaviour: Behaviour) -> None:
        if behaviour == "close":
            return
        status = behaviour if isinstance(behaviour, int) else 200
        head = f"HTTP/1.1 {status} X\r\n"
        if self.location:
            head += f"location: {self.location}\r\n"
        if behaviour == "flood":
            head += "x: y\r\n" * 1_000_000
        if behaviour == "half-body":
            head += "content-length: 1000000\r\n\r\nx"
        if isinstance(behaviour, int):
            head += "content-length: 0\r\n\r\n"
        writer.write(b"" if behaviour == "hang" else head.encode())
        await writer.drain()
        if not isinstance(behaviour, int):
            await asyncio.Event().wait()

    async def got(self, count: int, within_s: float = 10) -> list[Received]:
        """What came, once there are so many."""

        async def so_far() -> list[Received]:
            return self.received

        return await eventually(
            so_far,
            within_s=within_s,
            what=f"{count} messages came",
            until=lambda them: len(them) >= count,
        )


@asynccontextmanager
async def receiving(
    host: str = LOOPBACK, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """A receiver until the end of the block."""
    receiver = Receiver()
    tasks: set[asyncio.Task[Any]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await receiver.take(reader, writer)

    server = await asyncio.start_server(take, host, 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    receiver.url = f"http://{host}:{receiver.port}/hook"
    try:
        yield receiver
    finally:
        server.close()
        for task in tasks:
            task.cancel()
