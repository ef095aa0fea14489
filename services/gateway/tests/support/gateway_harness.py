"""A whole gateway in this process, on a real bus, answered by an agent that speaks the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from busbar_contracts.billing.v1.keys_pb2 import ApiKey
from busbar_contracts.gateway.v1.usage_pb2 import UsageRecord, UsageRecorded, UsageVoid
from busbar_contracts.node.v1 import work_pb2
from busbar_contracts.scheduler.v1 import deployment_pb2, plan_pb2
from busbar_gateway.adapters.grpc.catalogue import Catalogue
from busbar_gateway.adapters.grpc.edge import serve_grpc
from busbar_gateway.adapters.grpc.inference import Inference
from busbar_gateway.adapters.metrics import Metrics
from busbar_gateway.adapters.open_files import CONNECTIONS_MAX
from busbar_gateway.main import Gateway, build, running
from busbar_gateway.settings import GatewaySettings
from busbar_gateway.usecases.serving import Serving
from busbar_messaging import topology
from busbar_messaging.background import end
from busbar_messaging.connection import BusSettings, close, connect
from busbar_runtime.pytest_plugin import NatsServer
from lending import FakeBilling
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError
from tritonclient.grpc import model_config_pb2, service_pb2

REGION, OTHER_REGION = "r1", "r2"
QUEUE_MAX = 256
LIFE_EVERY_S = 0.5
SECRET = "a secret of the tests, long enough"
KEY = "bb_the-key-of-the-tests"
TENANT = "tenant-1"
AUTH = (("authorization", f"Bearer {KEY}"),)
pb: Any = service_pb2
_names = itertools.count(1)


def fresh_name(kind: str) -> str:
    return f"{kind}-{next(_names)}-{time.time_ns() % 10**8}"


async def eventually(what: Callable[[], Any], within_s: float = 10.0) -> Any:
    """Poll until `what()` is true; returns its value."""
    deadline = time.monotonic() + within_s
    while True:
        value = what()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def bus_settings(server: NatsServer, user: str) -> dict[str, Any]:
    return {
        "nats_url": server.url,
        "nats_user": user,
        "nats_password": server.credentials[user],
    }


Say = Callable[..., Awaitable[None]]
Behaviour = Callable[[work_pb2.InferenceWork, Say], Awaitable[None]]


@dataclass
class FakeAgent:
    """A node agent as the gateway sees one: pulls work, answers with frames, obeys cancels."""

    client: Client
    node: str = "r1.s1.n1"
    behaviour: Behaviour | None = None
    works: list[work_pb2.InferenceWork] = field(default_factory=list)
    cancels: list[work_pb2.WorkCancel] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    pulling: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it takes work."""

    async def start(self, deployment: str) -> None:
        async def on_cancel(message: Any) -> None:
            if message.data:  # an empty one only asks whether somebody is here
                self.cancels.append(work_pb2.WorkCancel.FromString(message.data))

        await self.client.subscribe(topology.cancel_subject(self.node), cb=on_cancel)
        self.pulling.set()
        self._spawn(self._pull(deployment))

    @property
    def last_is_cancelled(self) -> bool:
        """Whether it was told to stop what it took last."""
        return self.works[-1].request_id in {one.request_id for one in self.cancels}

    async def say(self, work: work_pb2.InferenceWork, node: str = "", **frame: Any) -> None:
        message = work_pb2.WorkFrame(
            request_id=work.request_id, attempt=work.attempt, node=node or self.node, **frame
        )
        await self.client.publish(work.reply_subject, message.SerializeToString())

    async def _pull(self, deployment: str) -> None:
        spec = topology.work_consumer(self.node.partition(".")[0], deployment)
        puller = await self.client.jetstream().pull_subscribe_bind(spec.durable, spec.stream)
        while True:
            await self.pulling.wait()
            with contextlib.suppress(NatsError, TimeoutError):
                for message in await puller.fetch(8, timeout=0.2):
                    await message.ack()
                    work = work_pb2.InferenceWork.FromString(message.data)
                    self.works.append(work)
                    self._spawn(self._serve(work))

    async def _serve(self, work: work_pb2.InferenceWork) -> None:
        async def say(**frame: Any) -> None:
            await self.say(work, **frame)

        await (self.behaviour or echo)(work, say)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def stop(self) -> None:
        await end(self.tasks)  # what waits by wait_for may swallow a cancellation
        await self.client.close()  # draining would wait 2 s for pulls that nobody reads any more


async def show_life(say: Say, until: asyncio.Event) -> None:
    """Say that the work goes on, as agents do, until the event is set."""
    while not until.is_set():
        await say(started=work_pb2.WorkStarted())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), LIFE_EVERY_S)


def response(work: work_pb2.InferenceWork, **more: Any) -> bytes:
    request = pb.ModelInferRequest.FromString(work.payload)
    answer = pb.ModelInferResponse(
        model_name=request.model_name, model_version="1", id=request.id, **more
    )
    answer.outputs.add(name="OUT", datatype="FP32", shape=[4])
    answer.raw_output_contents.extend(request.raw_input_contents[:1] or [bytes(16)])
    return answer.SerializeToString()


async def echo(work: work_pb2.InferenceWork, say: Say) -> None:
    await say(
        finished=work_pb2.WorkFinished(
            payload=response(work),
            usage=work_pb2.WorkUsage(input_tokens=3, output_tokens=2),
            timings=work_pb2.WorkTimings(compute_us=42),
        )
    )


def chunk(work: work_pb2.InferenceWork, sequence: int, **more: Any) -> work_pb2.WorkChunk:
    return work_pb2.WorkChunk(
        sequence=sequence,
        payload=response(work, **more),
        usage=work_pb2.WorkUsage(input_tokens=3, output_tokens=sequence + 1),
    )


def stream_of(count: int) -> Behaviour:
    async def behave(work: work_pb2.InferenceWork, say: Say) -> None:
        for sequence in range(count):
            await say(chunk=chunk(work, sequence))
        usage = work_pb2.WorkUsage(input_tokens=3, output_tokens=count)
        await say(finished=work_pb2.WorkFinished(chunk_count=count, usage=usage))

    return behave


def failing(
    kind: work_pb2.FailureKind.ValueType, reason: str = "because", *, told_to_leave: bool = False
) -> Behaviour:
    async def behave(work: work_pb2.InferenceWork, say: Say) -> None:
        failed = work_pb2.WorkFailed(kind=kind, reason=reason, told_to_leave=told_to_leave)
        await say(failed=failed)

    return behave


def make_route(
    name: str,
    *,
    slots: int = 4,
    decoupled: bool = False,
    price_class: str = "tensor",
    other_slots: int = 0,
    **more: Any,
) -> bytes:
    metadata = pb.ModelMetadataResponse(name=name, versions=["1"], platform="python")
    metadata.inputs.add(name="IN", datatype="FP32", shape=[4])
    metadata.outputs.add(name="OUT", datatype="FP32", shape=[4])
    config = pb.ModelConfigResponse(
        config=model_config_pb2.ModelConfig(
            name=name,
            input=[model_config_pb2.ModelInput(name="IN", dims=[4])],
            model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=decoupled),
        )
    )
    return plan_pb2.Route(
        deployment=name,
        fencing_token=1,
        manifest=deployment_pb2.ModelManifest(
            name=name,
            version="1",
            task=deployment_pb2.MODEL_TASK_TENSOR,
            slots=4,
            max_payload_bytes=4096,
            price_class=price_class,
        ),
        targets=[
            plan_pb2.RouteTarget(region=region, ready_slots=ready, ready_replicas=1)
            for region, ready in ((REGION, slots), (OTHER_REGION, other_slots))
            if ready
        ],
        model_metadata=metadata.SerializeToString(),
        model_config=config.SerializeToString(),
        **more,
    ).SerializeToString()


def request(name: str, **more: Any) -> bytes:
    message = pb.ModelInferRequest(model_name=name, id="7", **more)
    message.inputs.add(name="IN", datatype="FP32", shape=[4])
    message.raw_input_contents.append(np.arange(4, dtype="<f4").tobytes())
    return message.SerializeToString()


@dataclass
class Usage:
    """What the USAGE stream holds of one gateway."""

    records: list[UsageRecord] = field(default_factory=list)
    voids: list[UsageVoid] = field(default_factory=list)
    messages: int = 0
    """How often it wrote them."""

    @property
    def charged(self) -> set[bytes]:
        return {r.request_id for r in self.records} - {v.request_id for v in self.voids}


@dataclass
class Platform:
    """A gateway with its gRPC port open, and what stands around it."""

    gateway: Gateway
    provisioner: Client
    channel: grpc.aio.Channel
    serving: Serving
    gateway_id: str
    port: int
    agents: list[FakeAgent]
    server: NatsServer
    billing: FakeBilling

    async def deploy(self, agent: bool = True, **route: Any) -> tuple[str, FakeAgent]:
        """Make a deployment of its own; returns its name and the agent that serves it."""
        name = fresh_name("model")
        jetstream = self.provisioner.jetstream()
        for region in (REGION, OTHER_REGION):
            spec = topology.work_consumer(region, name)
            await jetstream.add_consumer(spec.stream, spec.config())
        await self.put_route(name, **route)
        fake = await self.agent(name) if agent else FakeAgent(self.provisioner)
        return name, fake

    async def put_route(self, name: str, **route: Any) -> None:
        bucket = await self.provisioner.jetstream().key_value(topology.ROUTES.name)
        value = make_route(name, **route)
        await bucket.put(name, value)
        slots = route.get("slots", 4) + route.get("other_slots", 0)
        await eventually(
            lambda: (found := self.gateway.routes.current(name)) and found.ready_slots == slots
        )

    async def agent(self, deployment: str, node: str = "r1.s1.n1") -> FakeAgent:
        settings = BusSettings(**bus_settings(self.server, "agent"))
        agent = FakeAgent(await connect(settings, "test-agent"), node)
        await agent.start(deployment)
        self.agents.append(agent)
        return agent

    async def infer(self, payload: bytes, timeout: float = 10, auth: Any = AUTH) -> Any:
        call = self.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer = await call(payload, timeout=timeout, metadata=auth)
        return pb.ModelInferResponse.FromString(answer)

    def stream(self, timeout: float | None = 10) -> Any:
        call = self.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        return call(timeout=timeout, metadata=AUTH)

    async def usage(self) -> Usage:
        """Everything this gateway has committed."""
        found = Usage()
        subject = topology.usage_subject(REGION, self.gateway_id)
        jetstream = self.provisioner.jetstream()
        sequence = 0
        while True:
            try:
                message = await jetstream.get_msg(
                    topology.USAGE.name, seq=sequence + 1, subject=subject, next=True
                )
            except NotFoundError:
                return found
            sequence = message.seq or 0
            batch = UsageRecorded.FromString(message.data or b"")
            found.records.extend(batch.records)
            found.voids.extend(batch.voids)
            found.messages += 1


def gateway_settings(server: NatsServer, state_dir: Path, **more: Any) -> GatewaySettings:
    options: dict[str, Any] = {
        "region": REGION,
        "gateway_id": fresh_name("g"),
        "http_port": 0,
        "grpc_port": 0,
        "ops_port": 0,
        "key_hmac_secret": SECRET,
        "state_dir": state_dir,
        "trace_sample_ratio": 0.0,
        "unready_grace": timedelta(seconds=1),
        "queue_max": QUEUE_MAX,
        **bus_settings(server, "gateway"),
        **more,
    }
    return GatewaySettings(**options)


def inference_of(gateway: Gateway, serving: Serving) -> Inference:
    return Inference(serving, gateway.keys, gateway.routes, default_timeout_s=30, timeout_max_s=60)


def grpc_edge(
    gateway: Gateway,
    serving: Serving,
    *,
    grace_s: float,
    connections_max: int = CONNECTIONS_MAX,
    bounded: bool = False,
) -> Any:
    """The gRPC port of a gateway; yields the port."""
    inference = inference_of(gateway, serving)
    return serve_grpc(
        inference,
        Catalogue(inference.authenticate, gateway.routes.find, gateway.readiness, "0"),
        address="127.0.0.1:0",
        readiness=gateway.readiness,
        grace=timedelta(seconds=grace_s),
        connections_max=connections_max,
        bounded=bounded,
    )


@contextlib.asynccontextmanager
async def a_gateway(
    server: NatsServer, provisioner: Client, metrics: Metrics, settings: GatewaySettings
) -> AsyncIterator[Platform]:
    client = await connect(settings, settings.gateway_id)
    gateway = build(settings, client, metrics)
    serving = Serving(gateway.collaborators)
    agents: list[FakeAgent] = []
    billing = FakeBilling(provisioner, settings.gateway_id)
    await billing.start()
    async with (
        running(gateway, settings.region),
        grpc_edge(gateway, serving, grace_s=1, bounded=settings.grpc_bounded) as port,
        grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)]
        ) as channel,
    ):
        await eventually(lambda: not gateway.readiness())
        yield Platform(
            gateway,
            provisioner,
            channel,
            serving,
            settings.gateway_id,
            port,
            agents,
            server,
            billing,
        )
        for agent in agents:
            await agent.stop()
    await close(client)


async def put_key(provisioner: Client, key: str, value: ApiKey) -> None:
    import hmac  # noqa: PLC0415

    bucket = await provisioner.jetstream().key_value(topology.KEYS.name)
    name = hmac.new(SECRET.encode(), key.encode(), "sha256").hexdigest()
    await bucket.put(name, value.SerializeToString())


async def tenant_with(platform: Platform, balance_nanos: int) -> tuple[str, Any]:
    """A tenant with a key; returns its id and the metadata of its calls."""
    tenant_id, key = fresh_name("tenant"), fresh_name("bb")
    platform.billing.balances[tenant_id] = balance_nanos
    await put_key(platform.provisioner, key, ApiKey(key_id="key-2", tenant_id=tenant_id))
    auth = (("authorization", f"Bearer {key}"),)

    def known() -> bool:
        try:
            return bool(platform.gateway.keys.authenticate(auth[0][1]))
        except Exception:  # noqa: BLE001
            return False

    await eventually(known)
    return tenant_id, auth
