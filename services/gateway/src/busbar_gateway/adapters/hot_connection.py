"""nats-py's connection without what a gateway's hot path does not need.

For each message nats-py builds a Msg, puts it on a queue and wakes a task that
awaits a callback; for each publish it validates the subject again and wakes a
task that flushes. Measured, that is a third of what a request costs a gateway.
Here messages of chosen subscriptions are handed over while they are parsed, and
what is published in one turn of the event loop leaves in one write. Connecting,
authentication, reconnecting and parsing stay nats-py's. It reaches into nats-py
2.16, which is pinned; a test fails when that changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError

UNWRITTEN_BYTES_MAX = 64 * 1024 * 1024
"""More than this on the way to the server, and publishing is refused."""

Handler = Callable[[bytes, bytes], None]
"""Takes subject and data. Must not block and must not raise."""
_ProcessMessage = Callable[[int, bytes, bytes, bytes, bytes], Awaitable[None]]


class HotConnection:
    """A connected client, with a short way in and a short way out."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client
        self._handlers: dict[int, Handler] = {}
        self._process: _ProcessMessage = self._client._process_msg  # noqa: SLF001
        self._client._process_msg = self._process_message  # noqa: SLF001
        self._flush_scheduled = False
        self._unwritten_bytes = 0
        """What the socket had not taken after the last write."""

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Hand every message on `subject` to `handler`, also after reconnects."""
        subscription = await self._client.subscribe(subject)
        self._handlers[subscription._id] = handler  # noqa: SLF001

    def publish(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """Publish in this turn of the event loop.

        Raises NatsError when not connected: nothing is kept for later, because
        the caller decides what is still worth sending then.
        """
        client = self._client
        if not client.is_connected:
            raise NatsError("not connected")
        if self._unwritten_bytes > UNWRITTEN_BYTES_MAX and self._still_unwritten():
            raise NatsError("the server does not keep up with what is published")
        line = b"PUB %b %b %d\r\n" % (subject, reply, len(payload))
        pending: list[bytes] = client._pending  # noqa: SLF001
        pending += (line, payload, b"\r\n")
        client._pending_data_size += len(line) + len(payload) + 2  # noqa: SLF001
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        client = self._client
        if client.is_connected and client._pending:  # noqa: SLF001
            client._transport.writelines(client._pending)  # noqa: SLF001
            client._pending = []  # noqa: SLF001
            client._pending_data_size = 0  # noqa: SLF001
            self._still_unwritten()

    def _still_unwritten(self) -> bool:
        transport = self._client._transport._io_writer.transport  # noqa: SLF001
        self._unwritten_bytes = transport.get_write_buffer_size()
        return self._unwritten_bytes > UNWRITTEN_BYTES_MAX

    async def _process_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            await self._process(sid, subject, reply, data, headers)
        else:
            handler(subject, data)
