"""Our own HTTP/2 against gRPC's own server, the one that Triton is built on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from busbar_node_agent.adapters.triton_rpc import TritonRpc
from busbar_node_agent.usecases.lane import TritonRefused

from .node_bench import poll

MIB = 1024 * 1024


@dataclass
class Server:
    """Answers ModelInfer with what it was sent, or as the message tells it to."""

    port: int = 0
    cancelled: int = 0
    seen: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer)}
        generic = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        self.server.add_generic_rpc_handlers((generic,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.stop(None)

    async def _infer(self, request: bytes, context: Any) -> bytes:
        self.seen.append({key: str(value) for key, value in context.invocation_metadata()})
        if request == b"refuse":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Länge: 100 %\nzu groß")
        if request == b"hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if request.startswith(b"send "):
            return bytes(int(request[5:]))
        return request


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def rpc(server: Server) -> AsyncIterator[TritonRpc]:
    rpc = TritonRpc(f"127.0.0.1:{server.port}")
    yield rpc
    await rpc.close()


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_379, 16_384, 65_530, 65_536, MIB, 6 * MIB])
async def test_a_message_of_any_size_goes_there_and_back(rpc: TritonRpc, size: int) -> None:
    message = os.urandom(size)

    assert await rpc.infer(message, 20.0, "") == message


async def test_many_calls_share_the_connection_and_its_windows(rpc: TritonRpc) -> None:
    messages = [os.urandom(each * 1000) for each in range(120)]

    answers = await asyncio.gather(*(rpc.infer(each, 20.0, "") for each in messages))

    assert answers == messages


async def test_a_refusal_brings_its_status_and_text(rpc: TritonRpc) -> None:
    with pytest.raises(TritonRefused) as refused:
        await rpc.infer(b"refuse", 5.0, "")

    assert refused.value.code == "INVALID_ARGUMENT"
    assert refused.value.reason == "Länge: 100 %\nzu groß"


async def test_a_traceparent_arrives_only_where_there_is_one(
    rpc: TritonRpc, server: Server
) -> None:
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"

    await rpc.infer(b"1", 5.0, traceparent)
    await rpc.infer(b"2", 5.0, "")

    assert [each.get("traceparent") for each in server.seen] == [traceparent, None]
    assert [each.get("x-trace-end") for each in server.seen] == ["1", None]


async def test_a_deadline_cancels_the_call_at_the_server(rpc: TritonRpc, server: Server) -> None:
    with pytest.raises(TritonRefused) as refused:
        await rpc.infer(b"hang", 0.2, "")

    await poll(lambda: _true(server.cancelled == 1), 5.0)
    assert refused.value.code == "DEADLINE_EXCEEDED"


async def test_a_cancelled_caller_cancels_the_call_at_the_server(
    rpc: TritonRpc, server: Server
) -> None:
    task = asyncio.create_task(rpc.infer(b"hang", 20.0, ""))
    await poll(lambda: _true(bool(server.seen)), 5.0)

    task.cancel()

    await poll(lambda: _true(server.cancelled == 1), 5.0)
    assert await rpc.infer(b"goes on", 5.0, "") == b"goes on"
    assert task.cancelled()


async def test_an_answer_that_no_frame_could_carry_is_refused(rpc: TritonRpc) -> None:
    with pytest.raises(TritonRefused, match="larger than max") as refused:
        await rpc.infer(b"send %d" % (9 * MIB), 20.0, "")

    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert await rpc.infer(b"goes on", 5.0, "") == b"goes on"


async def test_a_server_that_goes_away_fails_its_calls_and_is_found_again(
    rpc: TritonRpc, server: Server
) -> None:
    task = asyncio.create_task(rpc.infer(b"hang", 20.0, ""))
    await poll(lambda: _true(bool(server.seen)), 5.0)

    await server.stop()
    with pytest.raises(TritonRefused) as lost:
        await task
    with pytest.raises(TritonRefused) as away:
        await rpc.infer(b"?", 5.0, "")
    await server.start()

    assert {lost.value.code, away.value.code} <= {"UNAVAILABLE", "CANCELLED"}
    assert await rpc.infer(b"again", 5.0, "") == b"again"


async def test_closing_fails_what_is_being_called_without_cancelling_the_caller(
    rpc: TritonRpc, server: Server
) -> None:
    unary = asyncio.create_task(rpc.infer(b"hang", 20.0, ""))
    await poll(lambda: _true(bool(server.seen)), 5.0)

    await rpc.close()

    with pytest.raises(TritonRefused) as refused:
        await unary
    assert refused.value.code == "UNAVAILABLE"


async def test_a_used_up_connection_is_replaced(rpc: TritonRpc) -> None:
    await rpc.infer(b"1", 5.0, "")
    first = rpc._connection  # pyright: ignore[reportPrivateUsage]
    assert first is not None
    first._next_id = 2**31 - 1  # pyright: ignore[reportPrivateUsage]

    answers = [await rpc.infer(b"2", 5.0, ""), await rpc.infer(b"3", 5.0, "")]

    assert answers == [b"2", b"3"]
    assert rpc._connection is not first  # pyright: ignore[reportPrivateUsage]


async def test_a_peer_that_speaks_no_http2_is_left() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(babble, "127.0.0.1", 0)
    rpc = TritonRpc(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}")

    with pytest.raises(TritonRefused) as refused:
        await rpc.infer(b"?", 5.0, "")

    assert refused.value.code == "UNAVAILABLE"
    await rpc.close()
    listener.close()


async def _true(condition: bool) -> bool:
    return condition
