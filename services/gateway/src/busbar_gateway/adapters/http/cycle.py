"""One request on an HTTP connection, and the writing of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import unquote

import httptools

from busbar_gateway.adapters.http.errors import Headers, RequestTimeout
from busbar_gateway.adapters.http.limits import ClientGone, HttpLimits, body_too_large

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_CLOSE = (b"connection", b"close")
_CHUNKED = (b"transfer-encoding", b"chunked")
_PLAIN_PATH: Final = frozenset(b"?#%").isdisjoint
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_UNREAD_BYTES_MAX = 64 * 1024
"""More of a body than this waits at the client until somebody reads it."""


class Cycle(Protocol):
    """A request and its answer: `start`, then `write` to the end."""

    method: str
    path: str
    """Without the query, percent-decoded."""
    headers: dict[bytes, bytes]
    """By lower-case name, the first value of each."""
    malformed: Exception | None
    """Why its head alone forbids to serve it, as a failure to answer with."""
    started: bool
    """Whether status and headers were written, or are about to be."""
    task: asyncio.Task[None] | None
    """Who serves it; None where no client can go away."""
    when_lost: Callable[[], object] | None
    """Called when the client goes away before its answer is complete."""
    before_last: Callable[[], object] | None
    """Called right before the last byte is given to the transport."""

    @property
    def query(self) -> bytes:
        """What follows the question mark of the address."""
        ...

    async def body(self, limits: HttpLimits) -> bytes:
        """Return the whole body.

        Raises PayloadTooLarge as soon as that is known, RequestTimeout when the
        client takes too long, InvalidInput when what arrives is not a body,
        Unservable when it is more than a body, and ClientGone when it leaves
        before the end.
        """
        ...

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer; its head leaves with the first `write`."""
        ...

    async def write(self, part: bytes, *, more: bool) -> None:
        """Write a part of the answer, the last one when not `more`; nobody reads it when gone."""
        ...


class Connection(Protocol):
    """What a cycle needs from its connection."""

    transport: asyncio.Transport

    def pause_reading(self) -> None:
        """Let the client wait."""
        ...

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        ...

    async def writable(self) -> None:
        """Wait until the client has read most of what was written, or is gone."""
        ...

    def answered(self, cycle: ConnectionCycle) -> None:
        """The last byte of the answer was written."""
        ...


class ConnectionCycle:
    """The cycle of a request on a connection."""

    __slots__ = (
        "_body_bytes",
        "_body_complete",
        "_body_error",
        "_chunked",
        "_connection",
        "_head",
        "_parts",
        "_understands_chunks",
        "_url",
        "_waiter",
        "answered",
        "before_last",
        "gone",
        "headers",
        "keep_alive",
        "malformed",
        "method",
        "path",
        "started",
        "task",
        "when_lost",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        url: bytes,
        headers: dict[bytes, bytes],
        *,
        keep_alive: bool,
        understands_chunks: bool,
        malformed: Exception | None = None,
    ) -> None:
        self._connection = connection
        self._url = url
        self.method = method
        self.path = _path_of(url)
        self.headers = headers
        self.malformed = malformed
        self.keep_alive = keep_alive
        self.started = False
        self.answered = False
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self.when_lost: Callable[[], object] | None = None
        self.before_last: Callable[[], object] | None = None
        self._understands_chunks = understands_chunks
        """Otherwise an answer of unknown length ends with the connection."""
        self._chunked = False
        self._head = b""
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._body_complete = False
        self._body_error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def query(self) -> bytes:
        """As in Cycle."""
        return httptools.parse_url(self._url).query or b""

    # --- the request ---------------------------------------------------------------------------

    async def body(self, limits: HttpLimits) -> bytes:
        """As in Cycle."""
        limit = limits.max_body_bytes
        announced = self.headers.get(b"content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            raise body_too_large(limit)
        if not self._body_complete:
            await self._rest_of_body(limits)
        if self._body_bytes > limit:
            raise body_too_large(limit)
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _rest_of_body(self, limits: HttpLimits) -> None:
        if self.headers.get(b"expect", b"").lower() == b"100-continue":
            self._connection.transport.write(_CONTINUE)
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                while not self._body_complete and self._body_bytes <= limits.max_body_bytes:
                    if self.gone:
                        raise ClientGone
                    if self._body_error is not None:
                        raise self._body_error
                    self._connection.resume_reading()
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except TimeoutError as error:
            raise RequestTimeout(
                f"the body did not arrive within {limits.body_timeout_s:g} s"
            ) from error
        finally:
            self._waiter = None

    def feed(self, part: bytes) -> None:
        """Take a part of the body; it is dropped when the answer needed none."""
        if self.answered:
            return
        self._parts.append(part)
        self._body_bytes += len(part)
        if self._waiter is not None:
            self._wake()
        elif self._body_bytes > _UNREAD_BYTES_MAX:
            self._connection.pause_reading()

    def body_ended(self) -> None:
        """That was all of the body."""
        self._body_complete = True
        self._wake()

    def body_broke_off(self, error: Exception) -> None:
        """What follows is no body, as `error` says, so no request can follow either."""
        self._body_error = error
        self.keep_alive = False
        self._wake()

    def lost(self) -> None:
        """The client is gone."""
        if self.answered:
            return
        self.gone = True
        self._wake()
        if self.when_lost is not None:
            self.when_lost()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the answer ----------------------------------------------------------------------------

    def start(self, status: int, headers: Headers) -> None:
        """As in Cycle; without a content-length the answer is chunked where that is understood."""
        self.started = True
        length_known = any(name == b"content-length" for name, _ in headers)
        self._chunked = not length_known and self._understands_chunks
        if _CLOSE in headers or not (length_known or self._chunked):
            self.keep_alive = False
        if self._chunked:
            headers = [*headers, _CHUNKED]
        if not self.keep_alive and _CLOSE not in headers:
            headers = [*headers, _CLOSE]
        self._head = render_head(status, headers)

    async def write(self, part: bytes, *, more: bool) -> None:
        """As in Cycle."""
        await self._connection.writable()
        if self.gone:
            return
        if self._chunked:
            part = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
            if not more:
                part += b"0\r\n\r\n"
        if self.method == "HEAD":
            part = b""
        head, self._head = self._head, b""
        if self.before_last is not None and not more:
            self.before_last()
        self._connection.transport.write(head + part)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self.answered = True
        self._parts.clear()
        self._connection.answered(self)


def render_head(status: int, headers: Headers) -> bytes:
    """Return status line and headers as they go over the wire."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"%b%b\r\n" % (_STATUS_LINES[status], b"".join(lines))


def _path_of(url: bytes) -> str:
    if url[:1] == b"/" and _PLAIN_PATH(url):
        return url.decode("ascii")
    path: str = httptools.parse_url(url).path.decode("ascii")
    return unquote(path) if "%" in path else path
