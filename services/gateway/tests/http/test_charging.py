"""HTTP requests through the real Serving on a real bus: what is delivered is charged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import openai
import pytest
import tritonclient.http.aio as triton
from busbar_contracts.gateway.v1.usage_pb2 import UsageOutcome
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.http.cycle import ConnectionCycle
from busbar_gateway.adapters.http.limits import HttpLimits
from gateway_harness import (
    KEY,
    Platform,
    eventually,
    failing,
)
from harness.polling import quickest_s
from http_edge import Edge, http_edge, saying

PROMPT: list[Any] = [{"role": "user", "content": "go on"}]


@pytest.fixture
async def edge(platform: Platform) -> AsyncIterator[Edge]:
    async with http_edge(platform, HttpLimits()) as edge:
        yield edge


async def test_tensors_over_http_are_charged(edge: Edge) -> None:
    name, _ = await edge.platform.deploy()
    tensor = triton.InferInput("IN", [4], "FP32")
    tensor.set_data_from_numpy(np.arange(4, dtype=np.float32))
    async with edge.triton() as client:
        answer = await client.infer(name, [tensor], headers={"Authorization": f"Bearer {KEY}"})

    assert answer.as_numpy("OUT") is not None
    [record] = (await edge.platform.usage()).records
    assert (record.api, record.input_tokens) == ("kserve.http.infer", 3)
    assert record.outcome == UsageOutcome.USAGE_OUTCOME_COMPLETED


async def test_a_streamed_chat_is_charged_before_its_last_event(edge: Edge) -> None:
    name, _ = await edge.chat_model(saying("one", " two"))
    async with edge.openai() as client:
        stream = await client.chat.completions.create(
            model=name, messages=PROMPT, stream=True, stream_options={"include_usage": True}
        )
        text, committed = "", list[Any]()
        async for event in stream:
            if event.choices and event.choices[0].finish_reason:
                committed = (await edge.platform.usage()).records
            text += event.choices[0].delta.content or "" if event.choices else ""

    [record] = committed
    assert text == "one two"
    assert (record.input_tokens, record.output_tokens) == (3, 2)
    assert record.api == "openai.chat"
    assert f"req_{record.request_id.hex()}" == stream.response.headers["x-request-id"]


async def test_leaving_a_stream_cancels_at_the_node_and_charges_what_came(edge: Edge) -> None:
    never = asyncio.Event()
    name, agent = await edge.chat_model(saying("one", " two", " three", then=never))

    async def until_cancelled() -> float:
        async with edge.openai() as client:
            stream = await client.completions.create(model=name, prompt="x", stream=True)
            async for event in stream:
                if event.choices[0].text == " two":
                    break
            left = time.monotonic()
            await stream.close()
            await eventually(lambda: agent.last_is_cancelled)
            return time.monotonic() - left

    assert await quickest_s(until_cancelled, under_s=1) < 1
    for record in await eventually(lambda: _records(edge)):
        assert record.outcome == UsageOutcome.USAGE_OUTCOME_ABANDONED
        assert 2 <= record.output_tokens <= 3


async def test_leaving_before_a_whole_answer_cancels_and_charges_nothing(edge: Edge) -> None:
    never = asyncio.Event()
    name, agent = await edge.chat_model(saying("one", then=never))

    async def until_cancelled() -> float:
        before = len(agent.works)
        async with edge.openai() as client:
            asking = asyncio.create_task(client.completions.create(model=name, prompt="x"))
            await eventually(lambda: len(agent.works) > before)
            left = time.monotonic()
            asking.cancel()
            await eventually(lambda: agent.last_is_cancelled)
            return time.monotonic() - left

    assert await quickest_s(until_cancelled, under_s=1) < 1
    assert not (await edge.platform.usage()).charged


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (work_pb2.FAILURE_KIND_REJECTED, 400),
        (work_pb2.FAILURE_KIND_INTERNAL, 500),
        (work_pb2.FAILURE_KIND_TOO_LARGE, 422),
        (work_pb2.FAILURE_KIND_DEADLINE_EXCEEDED, 504),
    ],
)
async def test_failures_have_their_status_and_cost_nothing(
    edge: Edge, kind: Any, status: int
) -> None:
    name, _ = await edge.chat_model(failing(kind, "too long for this model"))
    async with edge.openai() as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.completions.create(model=name, prompt="x", stream=True)

    assert refused.value.status_code == status
    assert not (await edge.platform.usage()).records


async def _records(edge: Edge) -> list[Any]:
    return (await edge.platform.usage()).records


class Wire:
    """A connection and its transport, which note what happens in which order."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.transport = self

    def write(self, data: bytes) -> None:
        self.happened.append(data[-4:].decode())

    async def writable(self) -> None:
        return

    def answered(self, cycle: ConnectionCycle) -> None:
        self.happened.append("answered")


async def test_who_asked_is_told_right_before_the_last_byte_leaves_and_not_after() -> None:
    """The client may have it, and run, before the next line does."""
    wire = Wire()
    cycle = ConnectionCycle(
        cast("Any", wire), "POST", b"/", {}, keep_alive=True, understands_chunks=True
    )
    cycle.before_last = lambda: wire.happened.append("told")
    cycle.start(200, [(b"content-length", b"8")])
    await cycle.write(b"some", more=True)
    await cycle.write(b"rest", more=False)

    assert wire.happened == ["some", "told", "rest", "answered"]
