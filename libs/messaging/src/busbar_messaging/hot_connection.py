"""nats-py's connection without what a hot path does not need.

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

import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

log = structlog.get_logger()

UNWRITTEN_BYTES_MAX = 64 * 1024 * 1024
"""More than this on the way to the server, and publishing is refused."""

Handler = Callable[[bytes, bytes], None]
"""Takes subject and data. Must not block."""
DeliveryHandler = Callable[[bytes, bytes, bytes], None]
"""Takes reply subject, data and raw headers, any of them empty. Must not block."""
_ProcessMessage = Callable[[int, bytes, bytes, bytes, bytes], Awaitable[None]]
_Taker = Callable[[bytes, bytes, bytes, bytes], None]


class Deliveries:
    """An inbox whose messages are being handed over, until `drain` or `leave`."""

    def __init__(self, hot: HotConnection, subscription: Subscription) -> None:
        self._hot = hot
        self._subscription: Any = subscription

    async def drain(self) -> None:
        """Give the inbox up; what the server has sent to it by now is handed over before.

        nats-py's own drain may ask for the server's last word before it has told it to stop.
        """
        await self._hot.unsubscribe(self._subscription._id)  # noqa: SLF001
        await self.leave()

    async def leave(self) -> None:
        """Give the inbox up at once."""
        self._hot.forget(self._subscription._id)  # noqa: SLF001
        await self._subscription.unsubscribe()


class HotConnection:
    """A connected client, with a short way in and a short way out."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client
        self._loop = asyncio.get_running_loop()
        self._takers: dict[int, _Taker] = {}
        self._process: _ProcessMessage = self._client._process_msg  # noqa: SLF001
        self._client._process_msg = self._process_message  # noqa: SLF001
        self._flush_scheduled = False
        self._unwritten_bytes = 0
        """What the socket had not taken after the last write."""

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Hand every message on `subject` to `handler`, also after reconnects."""
        await self._take(subject, lambda subject, _, data, __: handler(subject, data))

    async def receive(self, inbox: str, handler: DeliveryHandler) -> Deliveries:
        """Hand what a stream delivers to `inbox`, and says about it, to `handler`."""
        subscription = await self._take(
            inbox, lambda _, reply, data, headers: handler(reply, data, headers)
        )
        return Deliveries(self, subscription)

    def publish(
        self, subject: bytes, payload: bytes, reply: bytes = b"", *, keep: bool = False
    ) -> None:
        """Publish in this turn of the event loop.

        Raises NatsError when not connected, because mostly the caller decides
        what is still worth sending then; with `keep` it leaves, as far as there
        is room, once the server is back.
        """
        client = self._client
        if not client.is_connected and not (keep and self._room_while_away(len(payload))):
            raise NatsError("not connected")
        if self._unwritten_bytes > UNWRITTEN_BYTES_MAX and self._still_unwritten():
            raise NatsError("the server does not keep up with what is published")
        line = b"PUB %b %b %d\r\n" % (subject, reply, len(payload))
        pending: list[bytes] = client._pending  # noqa: SLF001
        pending += (line, payload, b"\r\n")
        client._pending_data_size += len(line) + len(payload) + 2  # noqa: SLF001
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    async def unsubscribe(self, number: int) -> None:
        """Return when the server sends nothing more, and what it has sent is handed over."""
        await self._client._send_unsubscribe(number)  # noqa: SLF001
        self._flush()
        await self._client.flush()

    def forget(self, number: int) -> None:
        """Hand over no more of a subscription's messages."""
        self._takers.pop(number, None)

    async def _take(self, subject: str, taker: _Taker) -> Subscription:
        subscription = await self._client.subscribe(subject)
        self._takers[subscription._id] = taker  # noqa: SLF001
        return subscription

    def _room_while_away(self, size: int) -> bool:
        client = self._client
        held: int = client._pending_data_size + size  # noqa: SLF001
        return client.is_reconnecting and held <= client._max_pending_size  # noqa: SLF001

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
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        taker = self._takers.get(sid)
        if taker is None:
            await self._process(sid, subject, reply, data, headers or b"")
            return
        try:
            taker(subject, reply, data, headers or b"")
        except Exception:  # raised further it would end nats-py's reading for good
            log.exception("message handler failed by a bug", subject=subject)
