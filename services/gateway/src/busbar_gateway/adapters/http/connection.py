"""Bounds that hold before there is a request: heads, idle connections, how many there are.

uvicorn bounds none of these itself: a head may be endless and may take for
ever, and what a refused client goes on sending is read for ever.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from busbar_gateway.adapters.http.identity import new_request_id, public_id
from busbar_gateway.adapters.http.limits import HttpLimits

WHEN_LOST = "busbar.when_lost"
"""Where a request finds `when_lost` in its ASGI scope."""


_HELD_BYTES_MAX = 64 * 1024


class _HeadTooLarge(Exception):
    pass


class _AnswerTransport:
    """The transport as one request's answer sees it.

    What is written in one go leaves in one go, which saves a system call for
    every answer. Closing lets the client finish sending first: a socket closed
    with unread bytes is reset, and the reset takes the answer with it.
    """

    def __init__(self, protocol: _BoundedProtocol) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.is_closing = protocol.transport.is_closing

    def write(self, data: bytes) -> None:
        """Write with whatever else is written before the event loop's next turn."""
        if not self._held:
            self._protocol.loop.call_soon(self._flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= _HELD_BYTES_MAX:  # let the transport push back
            self._flush()

    def close(self) -> None:
        """Close now when the request was read to its end, later otherwise."""
        self._flush()
        self._protocol.close_gently()

    def _flush(self) -> None:
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            self._transport.write(b"".join(held))


def _refusal(status: int, reason: str) -> bytes:
    document = {"message": reason, "type": "invalid_request_error", "param": None, "code": None}
    body = orjson.dumps({"error": document})
    head = (
        f"x-request-id: {public_id(new_request_id())}\r\n"
        "content-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body


def bounded_protocol(limits: HttpLimits) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with these limits, for its `http` option."""

    class Bounded(_BoundedProtocol):
        bounds = limits

    return Bounded


class _BoundedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol that gives up on what takes too much or too long."""

    bounds: HttpLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._header_count = 0
        self._head_too_large = False
        self._refused = False
        self._unread_bytes = 0
        self._on_lost: Callable[[], object] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    # --- what the transport says ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or refuse it when there are too many."""
        super().connection_made(transport)  # pyright: ignore[reportArgumentType]
        if len(self.connections) > self.bounds.max_connections:
            self._refuse(503, "Too many connections are open; try again.")
            self.transport.close()
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers with the connection."""
        self._stop_head_timer()
        self._stop_linger_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost()

    def when_lost(self, callback: Callable[[], object] | None) -> None:
        """Call `callback` when the client goes away; None takes that back."""
        self._on_lost = callback

    def data_received(self, data: bytes) -> None:
        """Feed the parser; give up on a head that has grown too large."""
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            self._start_head_timer()
        super().data_received(data)
        if self._in_head and self._head_bytes > self.bounds.max_head_bytes:
            self._head_too_large = True
            self.send_400_response("")

    # --- what the parser says ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start to count anew."""
        super().on_message_begin()
        self._header_count = 0
        self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header unless there are too many."""
        self._header_count += 1
        if self._header_count > self.bounds.max_headers:
            self._head_too_large = True
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Serve the request when its head is small enough."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.bounds.max_head_bytes:
            self._head_too_large = True
            raise _HeadTooLarge
        self._in_head = False
        self._stop_head_timer()
        self.scope[WHEN_LOST] = self.when_lost  # pyright: ignore[reportGeneralTypeIssues]
        super().on_headers_complete()
        self.cycle.transport = _AnswerTransport(self)  # pyright: ignore[reportAttributeAccessIssue]

    def on_message_complete(self) -> None:
        """Expect another head from here on."""
        self._in_head = True
        self._head_bytes = 0
        lingered = self._linger_timer is not None
        self._stop_linger_timer()
        super().on_message_complete()
        if lingered:
            self._arm_keep_alive()

    # --- what uvicorn says ---------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Discard the rest of a body that nobody will read, for a bounded time."""
        if self._refused:
            self.flow.resume_reading()
            return
        unread = not self._in_head and self.cycle.response_complete
        self._unread_bytes = sys.maxsize
        super().on_response_complete()
        if unread and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._linger()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or what has too large a head."""
        if self._head_too_large:
            self._refuse(
                431,
                f"The request head has more than {self.bounds.max_headers} headers"
                f" or {self.bounds.max_head_bytes} bytes.",
            )
        else:
            self._refuse(400, msg)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer outside any request; close once the client has had time to read why."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_head_timer()
        self._stop_linger_timer()
        if self._busy():
            self.transport.close()  # an answer is being written: there is no room for another
            return
        self.transport.write(_refusal(status, reason))
        self._finish_writing()

    def close_gently(self) -> None:
        """Close, but read and discard what the client has yet to send, for a bounded time."""
        if self._in_head or self.transport.is_closing():
            self.transport.close()
            return
        self._refused = True
        self._finish_writing()

    def _finish_writing(self) -> None:
        self.transport.write_eof()
        self._linger()

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    # --- timers --------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Close after a while of reading and discarding."""
        self._linger_timer = self.loop.call_later(
            self.bounds.linger_timeout_s, self.transport.abort
        )

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; give up on a client that has stopped reading its answer."""
        unread = self.transport.get_write_buffer_size()
        if unread and unread < self._unread_bytes:
            self._unread_bytes = unread
            self._arm_keep_alive()
        elif unread:
            self.transport.abort()
        else:
            self.transport.close()

    def _arm_keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.bounds.head_timeout_s, self._head_timed_out
            )

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self._busy():
            self._start_head_timer()  # a head sent ahead has time until the answer before it
            return
        self._refuse(408, f"No complete request arrived within {self.bounds.head_timeout_s:g} s.")

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_linger_timer(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
