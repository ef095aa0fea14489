"""HTTP/1.1 connections that give up on whatever takes too much or too long.

httptools parses and uvicorn listens; between them a request goes to the edge
without ASGI, which would cost it a third of its price. Bounded here are heads,
idle connections, how many there are, what refused clients go on sending, and
what others leave unread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httptools
import orjson

from busbar_gateway.adapters.http.cycle import ConnectionCycle, render_head
from busbar_gateway.adapters.http.errors import Unservable
from busbar_gateway.adapters.http.framing import NEVER_TWICE, head_before_body, malformed
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.patience import Patience
from busbar_gateway.adapters.http.unread import Unread
from busbar_gateway.adapters.identity import new_request_id, public_id
from busbar_gateway.domain.failures import InvalidInput

_CHUNK_LINES_BYTES = 20
"""What surrounds a chunk that says nothing but its length: 16 digits, and two ends of line."""

_STOPPED = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class _HeadTooLarge(Exception):
    pass


def _refusal(status: int, reason: str) -> bytes:
    document = {"message": reason, "type": "invalid_request_error", "param": None, "code": None}
    body = orjson.dumps({"error": document})
    headers = [
        (b"x-request-id", public_id(new_request_id()).encode()),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    return render_head(status, headers) + body


def bounded_protocol(
    limits: HttpLimits, leaving: Callable[[], bool] = lambda: False
) -> type[HttpConnection]:
    """Return the protocol with these limits, for uvicorn's `http` option.

    While `leaving()` every answer is the last one on its connection.
    """

    class Bounded(HttpConnection):
        bounds = limits
        stays = staticmethod(lambda: not leaving())

    return Bounded


class HttpConnection(asyncio.Protocol):
    """One client's connection. The application gets a cycle for every request on it."""

    bounds: HttpLimits
    stays: Callable[[], bool]

    _head_again = False
    """Whether the parser reads a head that came already, for the sake of its body."""

    _host = b"?"
    """What the last request said that said it well; nobody is called so."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        del app_state
        self._application: Callable[[ConnectionCycle], Awaitable[None]] = config.loaded_app
        self._server = server_state
        """uvicorn's: `connections` and `tasks`, which it waits for when it stops."""
        self._loop: asyncio.AbstractEventLoop = _loop or asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        """A client that sends more after its last request still gets the answer to that."""
        self._patience = Patience(self._loop)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._said_twice = b""
        self._in_head = True
        self._head_begun = False
        """Whether a head began that is not complete; False before its first byte."""
        self._head_bytes = 0
        self._data_bytes = 0
        self._beside_body_bytes = 0
        """Chunk extensions and trailers that have come since the head, other than with it."""
        self._head_too_large = False
        self._receiving: ConnectionCycle | None = None
        """Whose body arrives, or arrived last."""
        self._answering: ConnectionCycle | None = None
        self._waiting: deque[ConnectionCycle] = deque()
        """Requests that were sent ahead of the answer before them."""
        self._refused = False
        self._unparsable = False
        """A body broke off: nothing after it can be read, its request is still answered."""
        self._lingering = False
        """The answer has left before all of the body has come, and the connection stays."""
        self._discarded_bytes = 0
        """Of the body that arrives; after a refusal of all that arrives."""
        self._quiet_since = self._loop.time()
        """When it was opened, or the last answer was complete."""
        self._leaving = False
        self._reading_paused = False
        self._writable = asyncio.Event()
        self._writable.set()

    # --- what the transport says ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or refuse it when there are too many."""
        self.transport = cast("asyncio.Transport", transport)
        self._unread = Unread(self.transport, self.bounds.write_timeout_s, self._loop)
        self._server.connections.add(self)
        if len(self._server.connections) > self.bounds.max_connections:
            self._refuse(503, "Too many connections are open; try again.")
            self._close()
            return
        self._patience.give(self.bounds.head_timeout_s, self._head_timed_out)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits for this client, and forget the timer."""
        del exc
        self._server.connections.discard(self)
        self._patience.close()
        self._unread.close()
        self._writable.set()
        for cycle in {self._answering, self._receiving, *self._waiting}:
            if cycle is not None:
                cycle.lost()
        self._waiting.clear()
        self._parser = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; give up on a head that has grown too large."""
        if self.transport.is_closing():
            return
        if self._refused or self._unparsable or self._lingering:
            self._discard(len(data))
            if not self._lingering:
                return
        self._data_bytes = len(data)
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._beside_body_bytes = max(self._beside_body_bytes, 0) + len(data)
        try:
            self._parser.feed_data(data)
        except _STOPPED as error:
            if not self._read_on(error, memoryview(data)):
                self._give_up_reading()
                return
        if self._in_head:
            if self._head_bytes or self._head_begun:
                self._bound_head()
        elif self._beside_body_bytes > self.bounds.max_head_bytes:
            self._head_too_large = True
            self._give_up_reading()

    def eof_received(self) -> None:
        """Close, as the transport does now: what was written is still sent."""
        self._close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        self._writable.clear()
        self._unread.watch()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable.set()
        if not self.transport.is_closing():  # the rest of what is unsent keeps it open
            self._unread.rest()

    def shutdown(self) -> None:
        """Take leave: close once what is in hand is answered; uvicorn calls this.

        Who was not told by an answer that it is the last one may have sent another request, which
        would be lost: such a client gets a moment, and is told by the answer to that.
        """
        self._leaving = True
        if self._answering is not None:
            if not self._answering.started:
                self._answering.keep_alive = False
            return
        quiet_s = 0.0 if self._head_begun else self._loop.time() - self._quiet_since
        rest_s = self.bounds.farewell_s - quiet_s
        if self._refused or self._lingering or rest_s <= 0:
            self._close()
        else:
            self._patience.give(rest_s, self._idle_too_long)

    # --- what the parser says ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a head."""
        self._url = b""
        self._headers = {}
        self._header_count = 0
        self._said_twice = b""
        self._head_begun = True

    def on_url(self, url: bytes) -> None:
        """Take a part of the address."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header unless there are too many; the first of a name counts."""
        self._header_count += 1
        if self._header_count > self.bounds.max_headers:
            self._head_too_large = True
            raise _HeadTooLarge
        if not self._in_head:  # trailers are no headers: RFC 9110, 6.5.1
            return
        name = name.lower()
        if name not in self._headers:
            self._headers[name] = value
        elif name in NEVER_TWICE:
            self._said_twice = name

    def on_headers_complete(self) -> None:
        """Serve the request when its head is small enough."""
        if self._head_again:
            self._head_again = self._head_begun = False
            return
        if max(self._head_bytes, self._data_bytes) > self.bounds.max_head_bytes:
            self._require_small_head()
        version = self._parser.get_http_version()
        stays = self.stays() and not self._leaving
        cycle = ConnectionCycle(
            self,
            self._parser.get_method().decode("ascii"),
            self._url,
            self._headers,
            keep_alive=version != "1.0" and self._parser.should_keep_alive() and stays,
            understands_chunks=version != "1.0",
            malformed=self._malformed(version),
        )
        self._in_head = self._head_begun = False
        self._beside_body_bytes = 0
        self._patience.take_back()
        self._receiving = cycle
        if self._answering is None:
            self._answer(cycle)
        else:
            self.pause_reading()
            self._waiting.append(cycle)

    def on_body(self, body: bytes) -> None:
        """Hand a part of the body on, unless nobody will read it."""
        self._beside_body_bytes -= len(body) + _CHUNK_LINES_BYTES
        if self._receiving is not None:
            self._receiving.feed(body)

    def on_message_complete(self) -> None:
        """Expect another head from here on."""
        if self._parser.should_upgrade():
            return  # httptools has read no body: `_read_on` does
        self._in_head = True
        self._head_bytes = 0
        if self._receiving is not None:
            self._receiving.body_ended()
        if self._lingering:
            self._lingering = False
            self._discarded_bytes = 0
            self.resume_reading()
            self._be_idle()

    def _malformed(self, version: str) -> Exception | None:
        headers = self._headers
        host = headers.get(b"host")
        if host == self._host and not self._said_twice and b"transfer-encoding" not in headers:
            return None
        error = malformed(version, headers, self._said_twice)
        if error is None and host is not None:
            self._host = host
        return error

    def _read_on(self, error: Exception, data: memoryview) -> bool:
        """Go on where the parser stopped at an offer of another protocol; whether it was that.

        A request that makes one is served as any other (RFC 9110, 7.8), body included. httptools
        skips the body, and takes it for the next request: so it gets another head before it.
        """
        while isinstance(error, httptools.HttpParserUpgrade) and self._receiving is not None:
            data = data[error.args[0] :]
            self._head_again = True
            try:
                self._parser.feed_data(head_before_body(self._receiving.headers))
                self._parser.feed_data(data)
            except _STOPPED as another:
                error = another
            else:
                return True
        return False

    def _bound_head(self) -> None:
        if self._head_bytes > self.bounds.max_head_bytes:
            self._head_too_large = True
            self._refuse_head("")
        elif not self._patience.given(self._head_timed_out):
            self._patience.give(self.bounds.head_timeout_s, self._head_timed_out)

    def _require_small_head(self) -> None:
        size = len(self._url) + sum(len(n) + len(v) for n, v in self._headers.items())
        if size > self.bounds.max_head_bytes:
            self._head_too_large = True
            raise _HeadTooLarge

    # --- serving -------------------------------------------------------------------------------

    def _answer(self, cycle: ConnectionCycle) -> None:
        self._answering = cycle
        cycle.task = self._loop.create_task(self._run(cycle))
        self._server.tasks.add(cycle.task)

    async def _run(self, cycle: ConnectionCycle) -> None:
        try:
            await self._application(cycle)
        finally:
            self._server.tasks.discard(cycle.task)
            if not cycle.answered:  # half an answer has left, or nothing ever will
                self._close()

    def answered(self, cycle: ConnectionCycle) -> None:
        """The last byte of an answer was written: go on with the next request."""
        self._answering = None
        if not cycle.keep_alive:
            self._close_gently()
        if self._refused or not self._waiting:  # else more would come with every answer
            self.resume_reading()
        if self._refused or self.transport.is_closing():
            return
        if self._waiting:
            self._answer(self._waiting.popleft())
        elif not self._in_head:
            self._lingering = True
            self._linger()
        elif self._head_begun:
            self._patience.give(self.bounds.head_timeout_s, self._head_timed_out)
        else:
            self._be_idle()

    # --- flow ----------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Let the client wait; nothing more arrives until `resume_reading`."""
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    async def writable(self) -> None:
        """Wait until the client has read most of what was written, or is gone."""
        if not self._writable.is_set():
            await self._writable.wait()

    # --- refusing and closing ------------------------------------------------------------------

    def _give_up_reading(self) -> None:
        """What arrives is not HTTP: tell the request whose body it is in, else refuse."""
        cycle = self._receiving
        if self._in_head or cycle is None:
            self._refuse_head("Invalid HTTP request received.")
        elif cycle.answered:
            self._close()
        else:
            self._unparsable = True
            cycle.body_broke_off(self._wrong_with_the_body())

    def _wrong_with_the_body(self) -> Exception:
        if not self._head_too_large:
            return InvalidInput("the chunks of the request body are malformed")
        return Unservable(
            431,
            f"beside its data the request body has more than {self.bounds.max_head_bytes} bytes"
            f" of chunk extensions and trailers, or the request more than"
            f" {self.bounds.max_headers} headers and trailers",
        )

    def _refuse_head(self, reason: str) -> None:
        """Refuse what is not HTTP, or what has too large a head."""
        if self._head_too_large:
            self._refuse(
                431,
                f"The request head has more than {self.bounds.max_headers} headers"
                f" or {self.bounds.max_head_bytes} bytes.",
            )
        else:
            self._refuse(400, reason)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer outside any request; close once the client has had time to read why."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._patience.take_back()
        if self._answering is not None:
            self._close()  # an answer is being written: there is no room for another
            return
        self.transport.write(_refusal(status, reason))
        self._finish_writing()

    def _close(self) -> None:
        """Close once what was written is sent, as long as the client takes any of it."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._unread.watch()

    def _close_gently(self) -> None:
        """Close now when the request was read to its end, else let the client finish sending.

        A socket closed with unread bytes is reset, and the reset takes the answer with it.
        """
        if self._in_head or self.transport.is_closing():
            self._close()
            return
        self._refused = True
        self._finish_writing()

    def _finish_writing(self) -> None:
        self.transport.write_eof()
        self._linger()

    def _linger(self) -> None:
        """Read and discard for a while, then close."""
        self._patience.give(self.bounds.linger_timeout_s, self.transport.abort)

    def _discard(self, size_bytes: int) -> None:
        """Note what nobody reads; beyond the bound the client waits, and may read why."""
        self._discarded_bytes += size_bytes
        if self._discarded_bytes > self.bounds.max_linger_bytes:
            self.pause_reading()

    def _be_idle(self) -> None:
        self._quiet_since = self._loop.time()
        idle_s = self.bounds.farewell_s if self._leaving else self.bounds.keep_alive_s
        self._patience.give(idle_s, self._idle_too_long)

    def _idle_too_long(self) -> None:
        if self.transport.get_write_buffer_size():  # it still reads its answer, or never will
            self._unread.watch()
            self._be_idle()
        else:
            self._close()

    def _head_timed_out(self) -> None:
        if self._answering is not None:  # a head sent ahead has time until the answer before it
            self._patience.give(self.bounds.head_timeout_s, self._head_timed_out)
            return
        self._refuse(408, f"No complete request arrived within {self.bounds.head_timeout_s:g} s.")
