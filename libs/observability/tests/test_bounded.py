"""Listeners and those who connect without saying anything, or slowly."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from busbar_observability import bounded
from busbar_observability.ops import serve_http
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

SHORT_S = 0.3
WITHIN_S = 5.0
MIB = 1024 * 1024
LARGE_BYTES = 16 * MIB
"""More than the kernel takes for a client that does not read."""
PIECES = [b"one", b"two", b"three", b"four"]


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def pieces(_: Request) -> Response:
    async def each() -> AsyncIterator[bytes]:
        for piece in PIECES:
            yield piece
            await asyncio.to_thread(threading.Event().wait, SHORT_S)

    return StreamingResponse(each())


async def large(request: Request) -> Response:
    async def each() -> AsyncIterator[bytes]:
        for _ in range(LARGE_BYTES // MIB):
            yield bytes(MIB)

    if request.query_params["sent"] == "in pieces":
        return StreamingResponse(each())
    return Response(bytes(LARGE_BYTES), headers={"connection": request.query_params["then"]})


async def slow(_: Request) -> Response:
    await asyncio.to_thread(threading.Event().wait, 4 * SHORT_S)
    return Response(b"late")


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(bounded, "HEAD_TIMEOUT_S", SHORT_S)
    monkeypatch.setattr(bounded, "BODY_TIMEOUT_S", SHORT_S)
    monkeypatch.setattr(bounded, "UNREAD_TIMEOUT_S", SHORT_S)
    application = Starlette(
        routes=[
            Route("/", echo, methods=["POST"]),
            Route("/slow", slow, methods=["GET"]),
            Route("/pieces", pieces, methods=["GET"]),
            Route("/large", large, methods=["GET"]),
        ]
    )
    async with serve_http(application, "127.0.0.1", 0, connections_max=3) as port:
        yield port


async def said(port: int, sent: bytes) -> bytes:
    """All that is answered to it until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), WITHIN_S)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST / HTTP/1.1\r\nhost: here\r\n",
        b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 9\r\n\r\nhalf",
        b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n1POST / HT",
    ],
    ids=["silent", "half a head", "half a body", "half a second head"],
)
async def test_what_does_not_arrive_in_time_is_a_408(port: int, begun: bytes) -> None:
    answer = await said(port, begun)

    assert answer.rpartition(b"HTTP/1.1 ")[2].startswith(b"408 ")


async def test_a_body_that_comes_after_its_answer_does_not_stop_the_clock(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /none HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\n")
    answered = await asyncio.wait_for(reader.readuntil(b"\r\n\r\nNot Found"), WITHIN_S)
    writer.write(b"1")
    try:
        rest = await asyncio.wait_for(reader.read(), WITHIN_S)
    finally:
        writer.close()

    assert answered.startswith(b"HTTP/1.1 404 ")
    assert rest.startswith(b"HTTP/1.1 408 ")


async def test_a_late_body_does_not_break_into_the_answer_before_it(port: int) -> None:
    first = b"GET /pieces HTTP/1.1\r\nhost: here\r\n\r\n"
    second = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 9\r\n\r\n"

    answer, _, rest = (await said(port, first + second)).partition(b"\r\n0\r\n\r\n")

    assert answer.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2] == PIECES
    assert rest.startswith(b"HTTP/1.1 408 ")


async def test_who_comes_when_there_are_too_many_is_refused(port: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
        answer = await said(port, b"")

    assert answer.startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize(
    "query", ["sent=at-once&then=keep-alive", "sent=at-once&then=close", "sent=in%20pieces"]
)
async def test_who_does_not_read_his_answer_keeps_nobody_out(port: int, query: str) -> None:
    request = f"GET /large?{query} HTTP/1.1\r\nhost: here\r\n\r\n".encode()
    async with AsyncExitStack() as stack:
        for _ in range(3):
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            silent.send(request)
        answer = await said(port, b"")
        async with asyncio.timeout(WITHIN_S):
            while answer.startswith(b"HTTP/1.1 503 "):
                answer = await said(port, b"")

    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_an_answer_may_take_longer_than_a_request(port: int) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False
    ) as client:
        answers = [await client.get("/slow"), await client.post("/", content=b"1" * 100_000)]

    assert [len(answer.content) for answer in answers] == [4, 100_000]
