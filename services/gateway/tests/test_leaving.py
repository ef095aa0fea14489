"""A gateway that stops: clients are sent elsewhere, what is in hand is finished."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.grpc.goodbye import say_goodbye
from busbar_gateway.adapters.http.limits import HttpLimits
from files_left import files_left, no_file_left
from gateway_harness import (
    AUTH,
    KEY,
    FakeAgent,
    Platform,
    Say,
    chunk,
    echo,
    eventually,
    grpc_edge,
    pb,
    request,
    show_life,
)
from http_edge import Edge, http_edge, saying
from structlog.testing import capture_logs

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Held:
    """Work that goes on until it is let go."""

    def __init__(self, agent: FakeAgent) -> None:
        self.let_go = asyncio.Event()
        agent.behaviour = self._behave

    async def _behave(self, work: work_pb2.InferenceWork, say: Say) -> None:
        if not work.stream:
            await show_life(say, self.let_go)
            await echo(work, say)
            return
        await say(chunk=chunk(work, 0))
        await show_life(say, self.let_go)
        await say(chunk=chunk(work, 1))
        await say(finished=work_pb2.WorkFinished(chunk_count=2))


def client_of(edge: Edge) -> httpx.AsyncClient:
    """An HTTP client with a key."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{edge.port}",
        headers={"authorization": f"Bearer {KEY}"},
        trust_env=False,
        verify=False,
    )


async def answers_of(channel: grpc.aio.Channel, name: str) -> list[str]:
    """One request over ModelStreamInfer: the errors of its answers, empty where there is none."""
    call: Any = channel.stream_stream(STREAM)(timeout=20, metadata=AUTH)
    await call.write(request(name))
    await call.done_writing()
    return [pb.ModelStreamInferResponse.FromString(part).error_message async for part in call]


async def test_a_client_that_is_told_goodbye_calls_over_a_new_connection(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()
    held = Held(agent)
    call = asyncio.create_task(platform.infer(request(name)))
    await eventually(lambda: agent.works)
    assert platform.channel.get_state() is grpc.ChannelConnectivity.READY

    await say_goodbye(platform.port, 0.0)
    await eventually(lambda: platform.channel.get_state() is grpc.ChannelConnectivity.IDLE)
    second = asyncio.create_task(platform.infer(request(name)))
    await eventually(lambda: len(agent.works) == 2)
    held.let_go.set()

    assert [(await each).model_name for each in (call, second)] == [name, name]
    assert platform.channel.get_state() is grpc.ChannelConnectivity.READY


async def test_goodbye_is_said_once_to_each_and_to_those_who_come_later(
    platform: Platform,
) -> None:
    name, _ = await platform.deploy()
    saying = asyncio.create_task(say_goodbye(platform.port, 1.0))
    answers = [await platform.infer(request(name)) for _ in range(20)]
    await saying

    assert [answer.model_name for answer in answers] == [name] * 20
    assert len((await platform.usage()).charged) == 20


async def test_nobody_who_comes_while_goodbye_is_said_loses_a_request(platform: Platform) -> None:
    """A client that is told at the very first fails what it has just begun to send."""
    name, _ = await platform.deploy()

    async def asks(channel: grpc.aio.Channel) -> str:
        call: Any = channel.unary_unary(INFER)(request(name), timeout=20, metadata=AUTH)
        return pb.ModelInferResponse.FromString(await call).model_name

    async def comes() -> list[str]:
        own = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{platform.port}", own) as channel:
            return await asyncio.gather(*[asks(channel) for _ in range(4)])

    saying = asyncio.create_task(say_goodbye(platform.port, 1.0))
    answers = list[str]()
    while not saying.done():
        for four in await asyncio.gather(*[comes() for _ in range(4)]):
            answers += four

    assert set(answers) == {name}


@contextlib.asynccontextmanager
async def leaving_edge(platform: Platform) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """One more gRPC port, which closes once the event is set."""
    closing = asyncio.Event()
    opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with grpc_edge(platform.gateway, platform.serving, grace_s=10) as port:
            opened.set_result(port)
            await closing.wait()

    serving = asyncio.create_task(serve())
    yield await opened, closing
    closing.set()
    await serving


async def test_calls_and_streams_in_hand_are_answered_before_the_port_closes(
    platform: Platform,
) -> None:
    plain, one = await platform.deploy()
    decoupled, other = await platform.deploy(decoupled=True)
    holds = Held(one), Held(other)
    async with (
        leaving_edge(platform) as (port, closing),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: Any = channel.unary_unary(INFER)(request(plain), timeout=20, metadata=AUTH)
        unary = asyncio.ensure_future(call)
        streamed = asyncio.create_task(answers_of(channel, decoupled))
        await eventually(lambda: one.works and other.works)
        closing.set()
        await eventually(lambda: channel.get_state() is grpc.ChannelConnectivity.IDLE)
        for hold in holds:
            hold.let_go.set()
        answered = pb.ModelInferResponse.FromString(await unary)

        assert answered.model_name == plain
        assert await streamed == ["", ""]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as late:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await late.unary_unary(INFER)(request(plain), timeout=5, metadata=AUTH)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_is_in_hand_is_answered_though_no_file_can_be_opened(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()
    held = Held(agent)
    async with (
        leaving_edge(platform) as (port, closing),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: Any = channel.unary_unary(INFER)(request(name), timeout=20, metadata=AUTH)
        in_hand = asyncio.ensure_future(call)
        await eventually(lambda: agent.works)
        with files_left(0), capture_logs() as logs:
            with no_file_left():  # whatever else of this process is closed just now
                closing.set()
                await eventually(lambda: [log for log in logs if "not told" in log["event"]])
            held.let_go.set()
            answered = pb.ModelInferResponse.FromString(await in_hand)

    assert answered.model_name == name
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_http_answers_end_their_connection_while_the_gateway_leaves(
    platform: Platform,
) -> None:
    async with http_edge(platform, HttpLimits()) as edge, client_of(edge) as client:
        before = await client.get("/v1/models")
        platform.gateway.stopping = True
        asked = [await client.get("/v1/models") for _ in range(2)]

    assert "connection" not in before.headers
    assert [(answer.status_code, answer.headers["connection"]) for answer in asked] == [
        (200, "close"),
        (200, "close"),
    ]


@dataclass
class Connection:
    """One to the HTTP edge, on which a client asks again as soon as it is answered."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nhost: busbar\r\nauthorization: Bearer {KEY}\r\n"
        self.writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self) -> bytes:
        """The head of an answer that says how long it is, which is read to its end."""
        head = await self.head()
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await self.reader.readexactly(int(length))
        return head


@dataclass
class LeavingEdge:
    """An HTTP edge that a test lets leave."""

    edge: Edge
    closing: asyncio.Event
    serving: asyncio.Task[None]

    async def leave(self) -> None:
        """Begin to; returns when nobody can connect any more."""
        self.closing.set()

        async def refused() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.edge.port)
            except OSError:
                return True
            writer.close()
            return False

        await eventually(refused)

    async def connect(self) -> Connection:
        return Connection(*await asyncio.open_connection("127.0.0.1", self.edge.port))


@contextlib.asynccontextmanager
async def leaving_http(platform: Platform, limits: HttpLimits) -> AsyncIterator[LeavingEdge]:
    """Leaves once it is told to, at the end of the block at the latest."""
    closing = asyncio.Event()
    opened: asyncio.Future[Edge] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with http_edge(platform, limits) as edge:
            opened.set_result(edge)
            await closing.wait()

    serving = asyncio.create_task(serve())
    yield LeavingEdge(await opened, closing, serving)
    closing.set()
    await serving


async def test_who_was_not_told_by_a_stream_that_began_before_is_told_by_the_next_answer(
    platform: Platform,
) -> None:
    ends = asyncio.Event()
    async with leaving_http(platform, HttpLimits(farewell_s=60)) as leaving:
        model, _ = await leaving.edge.chat_model(saying("one", then=ends))
        client = await leaving.connect()
        body = b'{"model":"%b","messages":[{"role":"user","content":"x"}],"stream":true}'
        client.send("POST", "/v1/chat/completions", body % model.encode())
        began = await client.head()
        platform.gateway.stopping = True
        await leaving.leave()
        ends.set()
        await client.reader.readuntil(b"0\r\n\r\n")
        client.send("GET", "/v1/models")
        told = await client.answer()

        assert b"connection: close" not in began
        assert told.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in told
        assert await client.reader.read() == b""
        await asyncio.wait_for(leaving.serving, 10)


async def test_who_was_just_answered_is_told_by_the_next_answer(platform: Platform) -> None:
    async with leaving_http(platform, HttpLimits(farewell_s=60)) as leaving:
        client = await leaving.connect()
        client.send("GET", "/v1/models")
        before = await client.answer()
        await leaving.leave()
        client.send("GET", "/v1/models")
        told = await client.answer()

        assert b"connection: close" not in before
        assert told.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in told
        assert await client.reader.read() == b""
        await asyncio.wait_for(leaving.serving, 10)


async def test_who_asks_nothing_more_is_not_waited_for(platform: Platform) -> None:
    async with leaving_http(platform, HttpLimits(farewell_s=0.1)) as leaving:
        idle = await leaving.connect()
        idle.send("GET", "/v1/models")
        await idle.answer()
        await leaving.leave()

        assert await asyncio.wait_for(idle.reader.read(), 10) == b""
        await asyncio.wait_for(leaving.serving, 10)


async def test_an_unready_model_says_the_same_pause_over_both_protocols(
    platform: Platform,
) -> None:
    name, _ = await platform.deploy(slots=0)
    async with http_edge(platform, HttpLimits()) as edge, client_of(edge) as client:
        answer = await client.get(f"/v2/models/{name}/ready")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await platform.infer(request(name))

    assert answer.headers["retry-after"] == "2"
    assert dict(refused.value.trailing_metadata() or ())["retry-after"] == "2.000"
