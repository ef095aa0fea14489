"""Listeners and what surrounds a body."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import pytest
from busbar_observability.ops import serve_http
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

WITHIN_S = 5.0
MUCH = 8_000_000
CHUNKED = b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n"
H2C = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
WEBSOCKET = b"connection: upgrade\r\nupgrade: websocket\r\n"
LAST = b"POST / HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-length: 4\r\n\r\nlast"


async def echo(request: Request) -> Response:
    body = await request.body()
    return Response(b"<%b>" % body, headers={"x-said": request.headers.get("x-said", "nothing")})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    application = Starlette(routes=[Route("/", echo, methods=["POST"])])
    async with serve_http(application, "127.0.0.1", 0) as port:
        yield port


async def said(port: int, sent: bytes, piece: int = MUCH) -> bytes:
    """All that is answered to it, sent so many bytes at a time, until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for at in range(0, len(sent), piece):
            writer.write(sent[at : at + piece])
            await asyncio.sleep(0)
        return await asyncio.wait_for(reader.read(), WITHIN_S)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"POST / HTTP/1.1\r\nx-a: ",
        b"POST /",
        CHUNKED + b"\r\n0\r\nx-a: ",
        CHUNKED + b"\r\n0\r\n",
        CHUNKED + b"\r\n5;a=",
        b"POST /none HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n5;a=",
    ],
    ids=["header", "address", "trailer", "its name", "extension", "answered"],
)
async def test_what_surrounds_a_body_has_an_end(port: int, begun: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken = 0
    try:
        writer.write(begun)
        with contextlib.suppress(ConnectionError):
            while taken < MUCH and not reader.at_eof():
                writer.write(b"b" * 10_000)
                taken += 10_000
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.001)
    finally:
        writer.close()

    assert taken < MUCH


async def test_too_much_beside_a_body_is_a_431(port: int) -> None:
    answer = await said(port, CHUNKED + b"\r\n0\r\nx-a: " + b"b" * 70_000)

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_body_may_come_in_any_number_of_chunks(port: int) -> None:
    answer = await said(port, CHUNKED + b"\r\n" + b"1\r\na\r\n" * 30_000 + b"0\r\n\r\n" + LAST, 999)

    assert b"<%b>" % (b"a" * 30_000) in answer
    assert answer.endswith(b"<last>")


async def test_a_trailer_is_no_header(port: int) -> None:
    answer = await said(port, CHUNKED + b"\r\n1\r\na\r\n0\r\nx-said: much\r\n\r\n" + LAST)

    assert b"<a>" in answer
    assert b"much" not in answer


@pytest.mark.parametrize("upgrade", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize(
    "body",
    [
        b"content-length: 5\r\n\r\nwhole",
        b"transfer-encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n",
        b"content-length: %d\r\n\r\n%b" % (len(LAST), LAST),
        b"\r\n",
    ],
    ids=["whole", "chunks", "a request", "none"],
)
@pytest.mark.parametrize("piece", [1, 40, MUCH])
async def test_a_body_is_read_whatever_protocol_is_asked_for(
    port: int, upgrade: bytes, body: bytes, piece: int
) -> None:
    request = b"POST / HTTP/1.1\r\nhost: here\r\n" + upgrade + body
    plain = b"POST / HTTP/1.1\r\nhost: here\r\n" + body

    answers = bodies(await said(port, request + request + LAST, piece))

    assert answers == bodies(await said(port, plain + plain + LAST))
    assert len(answers) == 3
    assert answers[-1] == b"<last>"


def bodies(answers: bytes) -> list[bytes]:
    found: list[bytes] = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        end = int(length[1])
        found.append(rest[:end])
        answers = rest[end:]
    return found
