"""The HTTP edge of a whole gateway in this process, and models that generate text."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import openai
import tritonclient.http.aio as triton
from busbar_contracts.node.v1 import work_pb2
from busbar_contracts.scheduler.v1 import deployment_pb2, plan_pb2
from busbar_gateway.adapters.http.app import create_app, server_options
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.services import Services
from busbar_messaging import topology
from busbar_observability.ops import serve_http
from gateway_harness import KEY, REGION, FakeAgent, Platform, Say, eventually, fresh_name
from http_harness import TEMPLATE, generation_response, generation_route


@dataclass
class Edge:
    """The platform's HTTP edge, and clients of it."""

    platform: Platform
    port: int

    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            api_key=KEY,
            max_retries=0,
            timeout=10,
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
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


@contextlib.asynccontextmanager
async def http_edge(platform: Platform, limits: HttpLimits) -> AsyncIterator[Edge]:
    """Serve HTTP while the context is open."""
    gateway = platform.gateway
    services = Services(
        platform.serving,
        gateway.keys,
        gateway.routes,
        gateway.idempotency,
        limits,
        gateway.readiness,
        gateway.collaborators.limiting.standings,
    )
    app = create_app(services)

    def leaving() -> bool:
        return gateway.stopping

    async with serve_http(app, "127.0.0.1", 0, **server_options(limits, leaving)) as port:
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
