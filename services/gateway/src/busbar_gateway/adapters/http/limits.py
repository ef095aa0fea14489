"""Bounds on what one HTTP request may take, enforced while it is read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from busbar_gateway.adapters.open_files import CONNECTIONS_MAX
from busbar_gateway.domain.failures import InvalidInput, PayloadTooLarge

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of the HTTP edge; every one is enforced, none is advisory."""

    max_body_bytes: int = 7 * _MIB
    """Body after decompression; beyond it 413."""
    body_timeout_s: float = 30.0
    """From the first to the last byte of a body; beyond it 408."""
    max_head_bytes: int = 64 * 1024
    """Request line and headers, and of a body what is not its data; beyond it 431."""
    max_headers: int = 128
    """Header lines, trailers included; beyond it 431."""
    head_timeout_s: float = 10.0
    """From the connection or the first byte of a request to its last header; beyond it 408."""
    linger_timeout_s: float = 10.0
    """How long the rest of a body is discarded after its request was answered; then a reset."""
    max_linger_bytes: int = 256 * _MIB
    """How much of it is discarded, so that who sends all before reading hears why it was refused;
    beyond it the client waits for the end of that time."""
    keep_alive_s: float = 75.0
    """How long an idle connection stays open."""
    farewell_s: float = 1.0
    """How long it stays open after its last answer while the gateway leaves."""
    max_connections: int = CONNECTIONS_MAX
    """Open connections; beyond it 503."""
    request_timeout_s: float = 60.0
    """Deadline of tensor and embedding requests."""
    generation_timeout_s: float = 600.0
    """Deadline of chat and text completions, streamed or not."""
    heartbeat_s: float = 5.0
    """Longest silence on an event stream before a comment line is sent."""
    write_timeout_s: float = 30.0
    """How long a client may take nothing of what was sent to it; then its connection is reset."""


class ClientGone(ConnectionError):
    """The client went away; nobody is left to answer."""


def body_too_large(limit: int) -> PayloadTooLarge:
    """The failure for a body beyond `limit` bytes."""
    return PayloadTooLarge(f"the request body is larger than {limit} bytes")


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding, never producing more than `limit` bytes.

    Raises PayloadTooLarge beyond the limit and InvalidInput for data that is
    not what the header says, or for an encoding other than gzip and deflate.
    """
    match encoding:
        case "" | "identity":
            return body
        case "gzip":
            inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        case "deflate":
            inflater = zlib.decompressobj()
        case _:
            raise InvalidInput("Content-Encoding must be gzip, deflate or identity")
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {encoding} data") from error
    if len(plain) > limit:
        raise body_too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"the body is not valid {encoding} data")
    return plain


def compress(body: bytes, encoding: str) -> bytes:
    """Apply a Content-Encoding, gzip or deflate; light compression, tensors rarely shrink."""
    window = 16 + zlib.MAX_WBITS if encoding == "gzip" else zlib.MAX_WBITS
    deflater = zlib.compressobj(1, zlib.DEFLATED, window)
    return deflater.compress(body) + deflater.flush()
