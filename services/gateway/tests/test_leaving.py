"""A gateway that stops: clients are sent elsewhere, what is in hand is finished."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.grpc.goodbye import say_goodbye
from busbar_gateway.adapters.http.limits import HttpLimits
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
from http_edge import Edge, http_edge

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
