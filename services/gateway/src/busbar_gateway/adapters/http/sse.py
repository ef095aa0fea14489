"""Server-sent events: the head waits for the first event, silence is filled with comments.

As long as nothing was sent a failure still gets its own status. Source for the
format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

import orjson
import structlog
from busbar_errors import BusbarError

from busbar_gateway.adapters.http.errors import Headers, error_document
from busbar_gateway.adapters.http.exchange import Exchange
from busbar_gateway.adapters.http.limits import ClientGone

_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b": keep-alive\n\n"
_DONE = b"data: [DONE]\n\n"
_log = structlog.get_logger()


@contextlib.asynccontextmanager
async def read_within(timeout_s: float) -> AsyncGenerator[None]:
    """Leave what is inside after `timeout_s` as if the client had gone.

    A client that reads ever so slowly would keep its slot at the model beyond any deadline, which
    holds while the next token is waited for.
    """
    patience = asyncio.timeout(timeout_s)
    try:
        async with patience:
            yield
    except TimeoutError as error:
        if patience.expired():
            raise ClientGone from error
        raise


class EventStream:
    """The event stream of one exchange; enter it around everything that may keep a client waiting.

    A failure inside is answered with its own status when nothing was sent yet,
    otherwise with an error event that ends the stream.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._heartbeat_s = exchange.limits.heartbeat_s
        self._lock = asyncio.Lock()
        self._silent = True

    async def __aenter__(self) -> Self:
        self._pulse = asyncio.create_task(self._keep_alive(), name="sse-heartbeat")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._pulse.cancel()
        if not self._exchange.started or not isinstance(error, Exception):
            return False
        if not isinstance(error, BusbarError):
            await _log.aerror(
                "unexpected failure in an event stream",
                request_id=self._exchange.public_id,
                exc_info=error,
            )
        self._exchange.failed = True
        document = orjson.dumps(error_document(self._exchange.family, error))
        await self._write(b"data: " + document + b"\n\n", more=False)
        return True

    async def send(self, document: object) -> None:
        """Send one event."""
        await self._write(b"data: " + orjson.dumps(document) + b"\n\n", more=True)

    async def finish(self, *documents: object) -> None:
        """Send the last events and OpenAI's end mark in one write."""
        events = b"".join(b"data: " + orjson.dumps(document) + b"\n\n" for document in documents)
        await self._write(events + _DONE, more=False)

    async def _write(self, data: bytes, *, more: bool) -> None:
        """Write, one at a time."""
        self._silent = False
        async with self._lock:
            if not self._exchange.started:
                self._exchange.start(200, _HEADERS)
            await self._exchange.write(data, more=more)

    async def _keep_alive(self) -> None:
        while True:
            self._silent = True
            await asyncio.sleep(self._heartbeat_s)
            if self._silent:
                await self._write(_COMMENT, more=True)
