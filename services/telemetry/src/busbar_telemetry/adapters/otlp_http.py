"""OTLP over HTTP: POST /v1/traces, protobuf or JSON, gzip or plain.

Errors carry a google.rpc.Status in the request's own encoding, as the OTLP
specification asks.
"""

from __future__ import annotations

import zlib

from busbar_errors import BusbarError, Rejected, Unavailable
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from busbar_telemetry.adapters.otlp_decoding import parse_json, parse_protobuf
from busbar_telemetry.adapters.otlp_intake import SpanIntake

BODY_BYTES_MAX = 4 * 1024 * 1024
_UNPACKED_BYTES_MAX = 8 * 1024 * 1024
_READING_BYTES_MAX = 16 * 1024 * 1024
_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class _TooLarge(BusbarError):
    """More than we read."""


class _Unsupported(BusbarError):
    """A content type or encoding that we do not read."""


ONE_EXPORT_PER_CONNECTION = [("connection", "close")]
"""What the listener adds to every answer. Exporters send a batch, then nothing for a while; where
the connection then ends just as the next batch goes out, Triton's exporter drops that batch."""

_ANSWERS: dict[type[BusbarError], tuple[int, int]] = {
    _TooLarge: (413, Code.INVALID_ARGUMENT),
    _Unsupported: (415, Code.INVALID_ARGUMENT),
    Rejected: (400, Code.INVALID_ARGUMENT),
    Unavailable: (503, Code.UNAVAILABLE),
}


class TraceEndpoint:
    """Reads one request at a time into memory, all of them together within a bound."""

    def __init__(self, intake: SpanIntake) -> None:
        self._intake = intake
        self._reading_bytes = 0

    async def export(self, request: Request) -> Response:
        """Answer one POST /v1/traces."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if content_type not in {_PROTOBUF, _JSON}:
                raise _Unsupported(f"send {_PROTOBUF} or {_JSON}, not {content_type or 'nothing'}")
            body = _unpack(await self._read(request), request.headers.get("content-encoding", ""))
            parse = parse_json if content_type == _JSON else parse_protobuf
            return _encode(self._intake.accept(parse(body)), content_type, 200)
        except BusbarError as error:
            return self._refuse(error, content_type)
        except ClientDisconnect:
            return Response(status_code=400)

    def _refuse(self, error: BusbarError, content_type: str) -> Response:
        if isinstance(error, Rejected):
            self._intake.malformed(error)
        http_status, code = _ANSWERS[type(error)]
        response = _encode(Status(code=code, message=error.reason[:300]), content_type, http_status)
        if isinstance(error, Unavailable):
            response.headers["retry-after"] = "1"
        return response

    async def _read(self, request: Request) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                self._reading_bytes += len(part)
                parts.append(part)
                if size > BODY_BYTES_MAX:
                    raise _TooLarge(f"a request may have {BODY_BYTES_MAX} bytes")
                if self._reading_bytes > _READING_BYTES_MAX:
                    raise Unavailable("too many requests at once; send again")
        finally:
            self._reading_bytes -= size
        return b"".join(parts)


def _unpack(body: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in _WINDOW_BITS:
        raise _Unsupported(f"send gzip, deflate or plain bodies, not {encoding[:40]}")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = unpacker.decompress(body, _UNPACKED_BYTES_MAX + 1)
    except zlib.error as error:
        raise Rejected(f"the body is not {encoding}: {error}") from error
    if len(unpacked) > _UNPACKED_BYTES_MAX:
        raise _TooLarge(f"a request may unpack to {_UNPACKED_BYTES_MAX} bytes")
    if not unpacker.eof:
        raise Rejected(f"the {encoding} body is cut off")
    return unpacked


def _encode(message: Message, content_type: str, status: int) -> Response:
    if content_type == _PROTOBUF:
        return Response(message.SerializeToString(), status, media_type=_PROTOBUF)
    return Response(json_format.MessageToJson(message, indent=None), status, media_type=_JSON)


def otlp_http_application(intake: SpanIntake) -> Starlette:
    """The OTLP/HTTP listener as an ASGI application."""
    endpoint = TraceEndpoint(intake)
    return Starlette(routes=[Route("/v1/traces", endpoint.export, methods=["POST"])])
