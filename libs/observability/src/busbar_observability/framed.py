"""uvicorn's HTTP/1.1 where it reads what surrounds a body: offers of other protocols, trailers."""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_FRAMING = (b"content-length", b"transfer-encoding")


class FramedProtocol(HttpToolsProtocol):
    """One connection. A request that offers another protocol is one as any other: RFC 9110, 7.8.

    httptools skips the body of such a request, and takes it for the next one. So it is given
    another head before that body, which begins no other request.
    """

    parser: Any
    """uvicorn's; None only when the connection is lost."""
    _head_again = False
    """Whether the parser reads a head that came already, for the sake of its body."""
    _in_body = False

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self._unset_keepalive_if_required()
        try:
            self._feed(memoryview(data))
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        """Begin a head."""
        if not self._head_again:
            self._in_body = False
            super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are none: RFC 9110, 6.5.1."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Serve the request."""
        if self._head_again:
            self._head_again = False
            return
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is here, unless httptools has skipped its body."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _feed(self, data: memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._head_again = True
                self.parser.feed_data(self._head_before_body())
            else:
                return

    def _head_before_body(self) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING]
        return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines)
