"""An HTTP/2 server that does as a script says, to the byte: what a well-behaved one never does."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from hpack import Encoder, NeverIndexedHeaderTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0, 1, 3, 4),
    *(6, 7, 8, 9),
)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW, FRAME_SIZE = 3, 4, 5

HEAD = ((":status", "200"), ("content-type", "application/grpc"))
OK = (("grpc-status", "0"),)


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    body: bytes

    def encoded(self) -> bytes:
        head = struct.pack(">I", len(self.body))[1:] + bytes([self.kind, self.flags])
        return head + struct.pack(">I", self.stream) + self.body


def block(headers: Sequence[tuple[str, str]]) -> bytes:
    """A header block that leaves no state behind."""
    literals = [NeverIndexedHeaderTuple(name, value) for name, value in headers]
    return Encoder().encode(literals, huffman=True)


def message(payload: bytes) -> bytes:
    """A gRPC message, uncompressed."""
    return struct.pack(">BI", 0, len(payload)) + payload


def settings(*pairs: tuple[int, int]) -> Frame:
    return Frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def credit(stream: int, count: int) -> Frame:
    return Frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", count))


def goaway(last_stream: int) -> Frame:
    return Frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, 0))


def reset(stream: int, code: int) -> Frame:
    return Frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def answer(stream: int, payload: bytes) -> list[Frame]:
    """What a plain server sends."""
    return [
        Frame(HEADERS, END_HEADERS, stream, block(HEAD)),
        Frame(DATA, 0, stream, message(payload)),
        Frame(HEADERS, END_HEADERS | END_STREAM, stream, block(OK)),
    ]


@dataclass
class Wire:
    """One connection, seen from the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: list[Frame] = field(default_factory=list[Frame])

    async def open(self, *pairs: tuple[int, int]) -> None:
        """Exchange prefaces."""
        assert await self.reader.readexactly(len(PREFACE)) == PREFACE
        self.send(settings(*pairs))

    def send(self, *frames: Frame) -> None:
        self.writer.write(b"".join(frame.encoded() for frame in frames))

    async def read(self) -> Frame:
        head = await self.reader.readexactly(9)
        length = int.from_bytes(head[:3], "big")
        body = await self.reader.readexactly(length)
        frame = Frame(head[3], head[4], int.from_bytes(head[5:], "big"), body)
        self.seen.append(frame)
        return frame

    async def until(self, kind: int, flags: int = 0) -> Frame:
        """The next frame of this kind that has at least these flags."""
        while (frame := await self.read()).kind != kind or frame.flags & flags != flags:
            pass
        return frame

    async def request(self) -> int:
        """Read one whole request; returns its stream."""
        return (await self.until(DATA, END_STREAM)).stream

    async def settled(self, stream: int) -> bytes:
        """The upload once the client has acted on all that was sent to it."""
        self.send(Frame(PING, 0, 0, b"settled?"))
        await self.until(PING, ACK)
        return self.body(stream)

    def body(self, stream: int) -> bytes:
        """What was uploaded on a stream so far."""
        return b"".join(f.body for f in self.seen if f.kind == DATA and f.stream == stream)


Script = Callable[[Wire], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[str]:
    """The address of a server whose nth connection follows the nth script; a script that ends
    leaves its connection open. Fails if a script did.
    """
    waiting, failures = list(scripts), list[BaseException]()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await waiting.pop(0)(Wire(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up, which some of them are there to see
        except (AssertionError, IndexError) as failure:
            failures.append(failure)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.close()
        server.close()
    assert not failures, failures
