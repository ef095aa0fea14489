"""One HTTP/2 connection that carries unary gRPC calls, and nothing more than that takes.

A call through grpc.aio costs about 200 µs of CPU, half of what an attempt costs the
agent in all, and no client on the package index is cheaper; with this one an attempt
costs 200 µs instead of 400. It speaks to one server that we start ourselves, in
plaintext, so it leaves out what such a client never meets: push, priorities, header
compression of what it sends, and compressed messages. Frames: RFC 9113. Calls: gRPC
over HTTP/2.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Mapping
from typing import cast
from urllib.parse import unquote

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from busbar_node_agent.usecases.lane import TritonRefused

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = struct.Struct(">BHBBI")  # a frame's length in 8 + 16 bits, type, flags, stream
_SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")
_MESSAGE = struct.Struct(">BI")  # a gRPC message's compressed flag and length
_HEAD_BYTES, _MESSAGE_HEAD_BYTES = 9, 5

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_WINDOW_UPDATE, _CONTINUATION = 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _PUSH, _CALLS_MAX, _INITIAL_WINDOW, _FRAME_SIZE = 1, 2, 3, 4, 5
_CANCEL = 8

_WINDOW_MAX = 2**31 - 1
_WINDOW_DEFAULT = 65_535
_FRAME_BYTES_DEFAULT = 16_384
_FRAME_BYTES_MAX = 2**24 - 1
_CREDIT_BYTES = 2**30
_STREAM_ID_MAX = 2**31 - 1
_HEADER_BLOCK_BYTES_MAX = 64 * 1024
_KNOWN_BLOCKS_MAX = 256

_CODES = {
    "1": "CANCELLED",
    "2": "UNKNOWN",
    "3": "INVALID_ARGUMENT",
    "4": "DEADLINE_EXCEEDED",
    "5": "NOT_FOUND",
    "6": "ALREADY_EXISTS",
    "7": "PERMISSION_DENIED",
    "8": "RESOURCE_EXHAUSTED",
    "9": "FAILED_PRECONDITION",
    "10": "ABORTED",
    "11": "OUT_OF_RANGE",
    "12": "UNIMPLEMENTED",
    "13": "INTERNAL",
    "14": "UNAVAILABLE",
    "15": "DATA_LOSS",
    "16": "UNAUTHENTICATED",
}

_CODES_OF_HTTP = {
    "400": "INTERNAL",
    "401": "UNAUTHENTICATED",
    "403": "PERMISSION_DENIED",
    "404": "UNIMPLEMENTED",
    "429": "UNAVAILABLE",
    "502": "UNAVAILABLE",
    "503": "UNAVAILABLE",
    "504": "UNAVAILABLE",
}
"""What an answer without a gRPC status means, by the specification's http-grpc-status-mapping."""


def header_block(headers: Mapping[str, str]) -> bytes:
    """Headers in a form that leaves no state behind, so that blocks can be reused and joined."""
    literals = [NeverIndexedHeaderTuple(name, value) for name, value in headers.items()]
    return Encoder().encode(literals, huffman=False)


class _Call:
    """One stream."""

    __slots__ = ("answer", "body", "ended", "headers", "window")

    def __init__(self, answer: asyncio.Future[bytes], window: int) -> None:
        self.answer = answer
        self.body = bytearray()
        self.headers: Mapping[str, str] = {}
        self.ended = False
        self.window = window


class Http2Connection(asyncio.Protocol):
    """Starts calls and sorts the frames that come back. Once `closed` it stays so."""

    def __init__(self, answer_bytes_max: int) -> None:
        self.closed = False
        self._answer_bytes_max = answer_bytes_max
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, _Call] = {}
        self._next_id = 1
        self._buffer = bytearray()
        self._block = bytearray()
        self._block_of: int | None = None
        """The stream whose header block goes on in the next frame."""
        self._blocks: dict[bytes, Mapping[str, str]] = {}
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = 0
        self._decoder.header_table_size = 0
        self._frame_bytes_max = _FRAME_BYTES_DEFAULT
        self._stream_window = _WINDOW_DEFAULT
        self._calls_max = _STREAM_ID_MAX
        self._window = _WINDOW_DEFAULT
        self._uncredited_bytes = 0
        self._unsent: deque[tuple[int, memoryview]] = deque()
        """Waits for the server's permission."""
        self._unwritten: list[bytes] = []

    # --- calls

    def start(self, head: bytes, message: bytes) -> tuple[int, asyncio.Future[bytes]]:
        """Send one message under the header block `head`; the future has the answer's bytes,
        or TritonRefused. `cancel` the returned stream when the answer is no longer wanted.
        """
        if self.closed or self._transport is None:
            raise TritonRefused("UNAVAILABLE", "not connected")
        if len(self._calls) >= self._calls_max:
            reason = f"Triton takes {self._calls_max} calls at once on a connection"
            raise TritonRefused("UNAVAILABLE", reason)
        stream_id, self._next_id = self._next_id, self._next_id + 2
        if self._next_id > _STREAM_ID_MAX:
            self.closed = True
        answer: asyncio.Future[bytes] = self._loop.create_future()
        call = self._calls[stream_id] = _Call(answer, self._stream_window)
        headers = _frame(_HEADERS, _END_HEADERS, stream_id, head)
        data = _MESSAGE.pack(0, len(message)) + message
        if len(data) <= min(self._frame_bytes_max, self._window, call.window) and not self._unsent:
            self._window -= len(data)
            self._write(headers + _frame(_DATA, _END_STREAM, stream_id, data))
        else:
            self._write(headers)
            self._unsent.append((stream_id, memoryview(data)))
            self._send_unsent()
        return stream_id, answer

    def cancel(self, stream_id: int) -> None:
        """Tell the server that nobody waits for this stream any more."""
        if self._calls.pop(stream_id, None) is not None:
            self._write(_frame(_RST_STREAM, 0, stream_id, _WORD.pack(_CANCEL)))

    def close(self) -> None:
        """Disconnect; open calls fail."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
        self._fail_all("the connection to Triton was closed")

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by behaviour only
        settings = (
            (_TABLE_SIZE, 0),
            (_PUSH, 0),
            (_INITIAL_WINDOW, _WINDOW_MAX),
            (_FRAME_SIZE, _FRAME_BYTES_MAX),
        )
        body = b"".join(_SETTING.pack(*setting) for setting in settings)
        more = _WORD.pack(_WINDOW_MAX - _WINDOW_DEFAULT)
        self._write(_PREFACE + _frame(_SETTINGS, 0, 0, body) + _frame(_WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail_all(f"the connection to Triton was lost: {exc or 'closed by Triton'}")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position, end = 0, len(buffer)
        try:
            while end - position >= _HEAD_BYTES:
                high, low, kind, flags, stream_id = _HEAD.unpack_from(buffer, position)
                begin = position + _HEAD_BYTES
                after = begin + (high << 16 | low)
                if after > end:
                    break
                position = after
                self._take_frame(kind, flags, stream_id & _STREAM_ID_MAX, buffer[begin:after])
        except (HPACKError, ValueError, struct.error, IndexError) as error:
            self._fail_all(f"Triton broke the protocol: {error!r}")
            if self._transport is not None:
                self._transport.abort()
            return
        del buffer[:position]

    # --- frames

    def _take_frame(self, kind: int, flags: int, stream_id: int, body: bytearray) -> None:
        if self._block_of is not None or kind == _CONTINUATION:
            self._check_continued(kind, stream_id)
        match kind:
            case 0:
                self._take_data(flags, stream_id, body)
            case 1:
                self._take_headers(flags, stream_id, _unpadded(flags, body, priority=True))
            case 9:
                self._take_headers(flags, stream_id, body)
            case 3:
                self._take_reset(stream_id, _WORD.unpack(body)[0])
            case 4 if not flags & _ACK:
                self._take_settings(body)
            case 6 if not flags & _ACK:
                self._write(_frame(_PING, _ACK, 0, body))
            case 7:
                self._take_goaway(*struct.unpack_from(">II", body))
            case 8:
                self._take_credit(stream_id, _WORD.unpack(body)[0])
            case _:
                pass  # unknown kinds are to be ignored

    def _check_continued(self, kind: int, stream_id: int) -> None:
        """RFC 9113, 6.10: nothing comes between the parts of a header block."""
        if self._block_of is None:
            raise ValueError("CONTINUATION of no header block")
        if (kind, stream_id) != (_CONTINUATION, self._block_of):
            raise ValueError("a header block was interrupted")

    def _take_data(self, flags: int, stream_id: int, body: bytearray) -> None:
        self._uncredited_bytes += len(body)
        if self._uncredited_bytes >= _CREDIT_BYTES:
            self._write(_frame(_WINDOW_UPDATE, 0, 0, _WORD.pack(self._uncredited_bytes)))
            self._uncredited_bytes = 0
        call = self._calls.get(stream_id)
        if call is None:
            return
        call.body += _unpadded(flags, body)
        if len(call.body) > self._answer_bytes_max + _MESSAGE_HEAD_BYTES:
            reason = f"Received message larger than max ({self._answer_bytes_max} bytes)"
            self.cancel(stream_id)
            _fail(call, "RESOURCE_EXHAUSTED", reason)
        elif flags & _END_STREAM:
            self._end(stream_id, {})

    def _take_headers(self, flags: int, stream_id: int, body: bytearray) -> None:
        self._block += body
        if len(self._block) > _HEADER_BLOCK_BYTES_MAX:
            raise ValueError(f"more than {_HEADER_BLOCK_BYTES_MAX} bytes of headers")
        call = self._calls.get(stream_id)
        if flags & _END_STREAM and call is not None:
            call.ended = True  # after the CONTINUATIONs that may carry the rest
        if not flags & _END_HEADERS:
            self._block_of = stream_id
            return
        self._block_of = None
        headers = self._decoded(bytes(self._block))
        self._block.clear()
        if call is None:
            return
        if call.ended:
            self._end(stream_id, headers)
        else:
            call.headers = headers

    def _decoded(self, block: bytes) -> Mapping[str, str]:
        """The headers in `block`. With a table of size 0 the same bytes always mean the same."""
        known = self._blocks.get(block)
        if known is None:
            known = {str(name): str(value) for name, value in self._decoder.decode(block)}
            if len(self._blocks) < _KNOWN_BLOCKS_MAX:
                self._blocks[block] = known
        return known

    def _take_reset(self, stream_id: int, code: int) -> None:
        call = self._calls.pop(stream_id, None)
        if call is not None:
            reason = f"Triton reset the stream with HTTP/2 error {code}"
            _fail(call, "CANCELLED" if code == _CANCEL else "UNAVAILABLE", reason)

    def _take_settings(self, body: bytearray) -> None:
        for name, value in _SETTING.iter_unpack(body):
            if name == _INITIAL_WINDOW:
                for call in self._calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
            elif name == _CALLS_MAX:
                self._calls_max = value
            elif name == _FRAME_SIZE:
                self._frame_bytes_max = value
        self._write(_frame(_SETTINGS, _ACK, 0, b""))
        self._send_unsent()

    def _take_goaway(self, last_id: int, code: int) -> None:
        self.closed = True
        for stream_id in [each for each in self._calls if each > last_id & _STREAM_ID_MAX]:
            reason = f"Triton is going away (HTTP/2 error {code})"
            _fail(self._calls.pop(stream_id), "UNAVAILABLE", reason)

    def _take_credit(self, stream_id: int, count: int) -> None:
        if stream_id == 0:
            self._window += count
        elif (call := self._calls.get(stream_id)) is not None:
            call.window += count
        self._send_unsent()

    def _send_unsent(self) -> None:
        """Send what waits for the server's permission, first come first served."""
        while self._unsent:
            stream_id, data = self._unsent[0]
            call = self._calls.get(stream_id)
            if call is not None:
                room = min(self._window, call.window, self._frame_bytes_max)
                if room <= 0:
                    return
                part, data = data[:room], data[room:]
                self._window -= len(part)
                call.window -= len(part)
                self._write(_frame(_DATA, 0 if data else _END_STREAM, stream_id, part))
                if data:
                    self._unsent[0] = (stream_id, data)
                    continue
            self._unsent.popleft()

    def _end(self, stream_id: int, trailers: Mapping[str, str]) -> None:
        call = self._calls.pop(stream_id)
        status = trailers.get("grpc-status") or call.headers.get("grpc-status")
        if status != "0":
            text = trailers.get("grpc-message") or call.headers.get("grpc-message", "")
            http = call.headers.get(":status") or trailers.get(":status", "?")
            code = _CODES_OF_HTTP.get(http) if status is None else _CODES.get(status)
            _fail(call, code or "UNKNOWN", unquote(text) or f"HTTP status {http}")
            return
        if len(call.body) < _MESSAGE_HEAD_BYTES:
            _fail(call, "INTERNAL", "Triton answered OK without a message")
            return
        compressed, length = _MESSAGE.unpack_from(call.body)
        if compressed or length != len(call.body) - _MESSAGE_HEAD_BYTES:
            _fail(call, "INTERNAL", "Triton's answer is not one plain message")
        elif not call.answer.done():
            call.answer.set_result(bytes(memoryview(call.body)[_MESSAGE_HEAD_BYTES:]))

    def _fail_all(self, reason: str) -> None:
        self.closed = True
        calls, self._calls = self._calls, {}
        self._unsent.clear()
        for call in calls.values():
            _fail(call, "UNAVAILABLE", reason)

    def _write(self, data: bytes) -> None:
        """Send it with whatever else is written in this turn of the event loop."""
        if not self._unwritten:
            self._loop.call_soon(self._flush)
        self._unwritten.append(data)

    def _flush(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        if unwritten and self._transport is not None:
            self._transport.writelines(unwritten)


def _frame(kind: int, flags: int, stream_id: int, body: bytes | bytearray | memoryview) -> bytes:
    size = len(body)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream_id) + body


def _unpadded(flags: int, body: bytearray, *, priority: bool = False) -> bytearray:
    if not flags & (_PADDED | _PRIORITY):
        return body
    begin, end = 0, len(body)
    if flags & _PADDED:
        begin, end = 1, end - body[0]
    if priority and flags & _PRIORITY:
        begin += 5
    return body[begin:end]


def _fail(call: _Call, code: str, reason: str) -> None:
    if not call.answer.done():
        call.answer.set_exception(TritonRefused(code, reason))
