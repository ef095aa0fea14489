"""What a head says about the message that it begins."""

from __future__ import annotations

import re
from typing import Final

from busbar_gateway.adapters.http.errors import Unservable
from busbar_gateway.domain.failures import InvalidInput

NEVER_TWICE: Final = frozenset(
    {
        b"authorization",
        b"host",
        b"idempotency-key",
        b"inference-header-content-length",
        b"transfer-encoding",
    }
)
"""Headers of which a proxy in between might take the other one (RFC 9110, section 5.3)."""
_FRAMING = (b"transfer-encoding", b"content-length")
_HOST = re.compile(
    rb"(?:\[[\w.~%!$&'()*+,;=:-]+\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)
"""An address in brackets or a name that may be empty, and a port (RFC 3986, section 3.2)."""


def malformed(
    version: str, headers: dict[bytes, bytes], said_twice: bytes = b""
) -> Exception | None:
    """Return why a request with this head is to be refused whatever it asks for, if it is.

    `said_twice` is one of NEVER_TWICE that came more than once.
    """
    if said_twice:
        return InvalidInput(
            f"the header {said_twice.decode()} was sent more than once; send it once"
        )
    host = headers.get(b"host")
    if host is None and version != "1.0":  # RFC 9112, section 3.2
        return InvalidInput("the header host is missing")
    if host is not None and not _HOST.fullmatch(host):
        return InvalidInput("the header host is not the name of a host and its port")
    coding = headers.get(b"transfer-encoding", b"chunked")
    if coding.strip().lower() != b"chunked":  # RFC 9112, section 6.1
        return Unservable(501, "no transfer-encoding but chunked is known here")
    return None


def head_before_body(headers: dict[bytes, bytes]) -> bytes:
    """Return the shortest head that is followed by a body as these headers say."""
    lines = [b"%b: %b\r\n" % (name, headers[name]) for name in _FRAMING if name in headers]
    return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines)
