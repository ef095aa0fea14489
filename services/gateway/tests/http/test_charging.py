"""HTTP requests through the real Serving on a real bus: what is delivered is charged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.http.aio as triton
from busbar_contracts.gateway.v1.usage_pb2 import UsageOutcome
from busbar_contracts.node.v1 import work_pb2
from busbar_contracts.scheduler.v1 import deployment_pb2, plan_pb2
from busbar_gateway.adapters.http.app import create_app, server_options
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.services import Services
from busbar_messaging import topology
from busbar_observability.ops import serve_http
from gateway_harness import (
    KEY,
    REGION,
    FakeAgent,
    Platform,
    Say,
    eventually,
    failing,
    fresh_name,
)
from http_harness import TEMPLATE, generation_response, generation_route

PROMPT: list[Any] = [{"role": "user", "content": "go on"}]


@dataclass
class Edge:
    """The platform's HTTP edge, and clients of it."""

    platform: Platform
    port: int

    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0, timeout=10
        )

    def triton(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(f"127.0.0.1:{self.port}")

    async def chat_model(self, behaviour: Any) -> tuple[str, FakeAgent]:
        """Deploy a model that generates text as `behaviour` says."""
        name = fresh_name("chat")
        jetstream = self.platform.provisioner.jetstream()
        spec = topology.work_consumer(REGION, name)
        await jetstream.add_consumer(spec.stream, spec.config())
        bucket = await jetstream.key_value(topology.ROUTES.name)
        await bucket.put(name, chat_route(name))
        await eventually(lambda: self.platform.gateway.routes.current(name))
        agent = await self.platform.agent(name)
        agent.behaviour = behaviour
        return name, agent


@pytest.fixture
async def edge(platform: Platform) -> AsyncIterator[Edge]:
    gateway, limits = platform.gateway, HttpLimits()
    services = Services(
        platform.serving,
        gateway.keys,
        gateway.routes,
        gateway.idempotency,
        limits,
        gateway.readiness,
    )
    app = create_app(services)
    async with serve_http(app, "127.0.0.1", 0, **server_options(limits)) as port:
        yield Edge(platform, port)


def chat_route(name: str) -> bytes:
    route = generation_route(name)
    return plan_pb2.Route(
        deployment=name,
        fencing_token=1,
        manifest=deployment_pb2.ModelManifest(
            name=name,
            version="1",
            task=deployment_pb2.MODEL_TASK_CHAT,
            slots=4,
            price_class="chat",
            chat_template=TEMPLATE,
        ),
        targets=[plan_pb2.RouteTarget(region=REGION, ready_slots=4, ready_replicas=1)],
        model_metadata=route.metadata,
        model_config=route.config,
    ).SerializeToString()


def saying(*words: str, then: asyncio.Event | None = None) -> Any:
    """Say words; wait for `then`, if given, before the end."""

    async def behave(work: work_pb2.InferenceWork, say: Say) -> None:
        for sequence, word in enumerate(words):
            usage = work_pb2.WorkUsage(input_tokens=3, output_tokens=sequence + 1)
            payload = generation_response(word.encode(), "")
            await say(chunk=work_pb2.WorkChunk(sequence=sequence, payload=payload, usage=usage))
        if then is not None:
            await then.wait()
        usage = work_pb2.WorkUsage(input_tokens=3, output_tokens=len(words))
        await say(finished=work_pb2.WorkFinished(chunk_count=len(words), usage=usage))

    return behave


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
    async with edge.openai() as client:
        stream = await client.completions.create(model=name, prompt="x", stream=True)
        async for event in stream:
            if event.choices[0].text == " two":
                break
        await stream.close()

    await eventually(lambda: agent.cancels, within_s=1)
    [record] = await eventually(lambda: _records(edge))
    assert record.outcome == UsageOutcome.USAGE_OUTCOME_ABANDONED
    assert 2 <= record.output_tokens <= 3


async def test_leaving_before_a_whole_answer_cancels_and_charges_nothing(edge: Edge) -> None:
    never = asyncio.Event()
    name, agent = await edge.chat_model(saying("one", then=never))
    async with edge.openai() as client:
        asking = asyncio.create_task(client.completions.create(model=name, prompt="x"))
        await eventually(lambda: agent.works)
        asking.cancel()

    await eventually(lambda: agent.cancels, within_s=1)
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
