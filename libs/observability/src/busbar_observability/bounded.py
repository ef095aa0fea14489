"""uvicorn's HTTP/1.1 with bounds: on how many connect, on how long a request takes to arrive and
how much comes beside its body, and on how long an answer goes unread.

Without them connections that say nothing, or read nothing, stay open for ever, until the process
has no file left for anybody, its database and the bus included.
"""

from __future__ import annotations

import asyncio
import socket

from busbar_observability.framed import FramedProtocol

CONNECTIONS_MAX = 512
"""Of each listener, where as many files may be open (open_files.py); beyond it 503."""
HEAD_TIMEOUT_S = 10.0
"""From the connection, or the answer before, to the last header; beyond it 408."""
BODY_TIMEOUT_S = 30.0
"""From the last header to the last byte of the body; beyond it 408."""
UNREAD_TIMEOUT_S = 30.0
"""How long a client may read nothing of what is answered; then it is cut off."""

BESIDE_BODY_BYTES_MAX = 64 * 1024
"""Of a request's head, chunk extensions and trailers together; beyond it 431. The parser joins the
pieces of each at the cost of their square."""
_CHUNK_LINES_BYTES = 20
"""What surrounds a chunk that says nothing but its length: 16 digits, and two ends of line."""


class BoundedProtocol(FramedProtocol):
    """One connection."""

    connections_max = CONNECTIONS_MAX
    _patience: asyncio.TimerHandle | None = None
    _beside_body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or refuse it when there are too many."""
        super().connection_made(transport)  # pyright: ignore[reportArgumentType]
        self._cut_off_when_unread(transport.get_extra_info("socket"))
        if len(self.connections) > self.connections_max:
            self._leave("503 Service Unavailable", "too many connections are open; try again")
        else:
            self._give(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._give(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless too much comes that is no body."""
        self._beside_body_bytes = max(self._beside_body_bytes, 0) + len(data)
        super().data_received(data)
        if self._beside_body_bytes > BESIDE_BODY_BYTES_MAX and not self.transport.is_closing():
            self._leave(
                "431 Request Header Fields Too Large",
                f"head and trailers have more than {BESIDE_BODY_BYTES_MAX} bytes",
            )

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._beside_body_bytes -= len(body) + _CHUNK_LINES_BYTES
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Its body comes next."""
        super().on_headers_complete()
        self._expect()

    def on_message_complete(self) -> None:
        """All of it is here."""
        super().on_message_complete()
        if not self.parser.should_upgrade():
            self._beside_body_bytes = 0
        self._expect()

    def on_response_complete(self) -> None:
        """The next one may come, unless it is here already."""
        super().on_response_complete()
        self._expect()

    def _cut_off_when_unread(self, connection: socket.socket) -> None:
        """Have the kernel do it: it knows what the client took, also after the transport closed.

        Linux counts the time in which nothing is acknowledged or the window is shut: tcp(7).
        """
        milliseconds = round(UNREAD_TIMEOUT_S * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _expect(self) -> None:
        """Give what comes next its time; an answer may take what it takes.

        A body that comes after its answer is read to its end, in the time of the next head. One
        that was sent ahead of the answer before it has its time after that.
        """
        if self.cycle.response_complete:
            self._give(HEAD_TIMEOUT_S)
        elif self.cycle.more_body and not self.pipeline:
            self._give(BODY_TIMEOUT_S)
        else:
            self._give(None)

    def _give(self, seconds: float | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if seconds is not None and not self.transport.is_closing():
            self._patience = self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._leave("408 Request Timeout", "the request did not arrive in time")

    def _leave(self, status: str, reason: str) -> None:
        if self.pipeline:
            pass  # an answer before it is being written: there is no room for another
        elif not self.cycle or not self.cycle.response_started or self.cycle.response_complete:
            head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: text/plain\r\n"
            self.transport.write(f"{head}content-length: {len(reason)}\r\n\r\n{reason}".encode())
        self.transport.close()


def bounded_protocol(connections_max: int) -> type[BoundedProtocol]:
    """Return the protocol of a listener that takes so many connections at a time."""
    return type("Bounded", (BoundedProtocol,), {"connections_max": connections_max})
