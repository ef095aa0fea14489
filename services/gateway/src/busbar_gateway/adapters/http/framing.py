"""What a head says about the message that it begins."""

from __future__ import annotations

_FRAMING = (b"transfer-encoding", b"content-length")


def head_before_body(headers: dict[bytes, bytes]) -> bytes:
    """Return the shortest head that is followed by a body as these headers say."""
    lines = [b"%b: %b\r\n" % (name, headers[name]) for name in _FRAMING if name in headers]
    return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lines)
