"""A bus, nodes that only say that they live, and schedulers, for tests on a real NATS."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
from busbar_contracts.gateway.v1.status_pb2 import DeploymentLoad, GatewayStatus
from busbar_contracts.node.v1.status_pb2 import (
    NodeCapacity,
    NodeLease,
    NodeStatus,
    ReplicaState,
    ReplicaStatus,
    TritonState,
)
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement, Route
from busbar_messaging import topology
from busbar_messaging.bundles.sealing import SigningKey
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.hearing import DEAF_AFTER_S, GRACE_S
from busbar_observability.ops import serve_http
from busbar_runtime.platform import Platform
from busbar_scheduler.main import Scheduler
from busbar_scheduler.settings import Settings
from harness.bundles import KEY, Made, make
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy
from nats.js.errors import KeyNotFoundError, NotFoundError
from pydantic import SecretStr

TOKEN = "an-operator-token-for-tests"
MIB_PER_NODE = 1000
PUBLISHER = SigningKey.make()
"""Trusted with data, not with code."""
MANIFEST = """\
name: {name}
version: "1"
task: tensor
slots: 8
memory_mb: {memory_mb}
price_class: tensor
warmup:
  inputs: {{A: {{datatype: INT32, shape: [1], data: [1]}}}}
  expect: {{B: {{datatype: INT32, shape: [1], data: [1]}}}}
"""
CONFIG = """\
backend: "python"
input [{ name: "A", data_type: TYPE_INT32, dims: [1] }]
output [{ name: "B", data_type: TYPE_INT32, dims: [1] }]
"""


def bundle(name: str = "simple", memory_mb: int = 64) -> Made:
    """A small good bundle."""
    manifest = MANIFEST.format(name=name, memory_mb=memory_mb)
    return make(
        {
            "busbar.yaml": manifest.encode(),
            "config.pbtxt": CONFIG.encode(),
            "1/model.py": b"pass\n",
        }
    )


@dataclass(frozen=True)
class Bus:
    """A NATS with the product's streams and buckets."""

    platform: Platform

    def settings(self, user: str) -> BusSettings:
        """How a service connects."""
        found = self.platform.endpoints
        return BusSettings(
            nats_url=found["nats"],
            nats_user=user,
            nats_password=SecretStr(found["nats_credentials"][user]),
        )

    @contextlib.asynccontextmanager
    async def connected(self, user: str) -> AsyncIterator[Client]:
        """A connection as one of the services."""
        client = await connect(self.settings(user), f"test-{user}")
        try:
            yield client
        finally:
            await close(client)


@dataclass
class FakeNode:
    """A node agent as far as the scheduler can tell: it reports, and carries out at once."""

    client: Client
    key: str
    run_id: str = "run1"
    reads_queue_names: bool = True
    status: NodeStatus = field(default_factory=NodeStatus)
    _silent: asyncio.Event = field(default_factory=asyncio.Event)

    async def live(self) -> None:
        """Report, then send a lease each second until `die`."""
        capacity = NodeCapacity(memory_mib=MIB_PER_NODE, slots=100)
        self.status = NodeStatus(
            node=self.key,
            agent_run_id=self.run_id,
            capacity=capacity,
            triton_state=TritonState.TRITON_STATE_READY,
            reads_queue_names=self.reads_queue_names,
        )
        await self.report()
        lease = NodeLease(node=self.key, agent_run_id=self.run_id, ready=True)
        while not self._silent.is_set():
            with contextlib.suppress(Exception):  # the bus may be away for a while
                leases = await self.client.jetstream(timeout=1).key_value("leases")
                await leases.put(self.key, lease.SerializeToString())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._silent.wait(), 0.5)

    async def report(self) -> None:
        """Write the status."""
        nodes = await self.client.jetstream().key_value("nodes")
        await nodes.put(self.key, self.status.SerializeToString())

    async def serve(self, placement: NodePlacement | None) -> None:
        """Say that everything placed here is ready."""
        del self.status.replicas[:]
        for one in placement.replicas if placement else ():
            self.status.replicas.append(
                ReplicaStatus(
                    deployment=one.deployment,
                    bundle_digest=one.bundle_digest,
                    state=ReplicaState.REPLICA_STATE_READY,
                    slots=one.slots,
                    model_metadata=b"metadata",
                    model_config=b"config",
                )
            )
        await self.report()

    def die(self) -> None:
        """Never be heard of again."""
        self._silent.set()


@contextlib.asynccontextmanager
async def living(bus: Bus, key: str, *, reads_queue_names: bool = True) -> AsyncIterator[FakeNode]:
    """A node that lives as long as the context, unless it dies before."""
    async with bus.connected("agent") as client:
        node = FakeNode(client, key, reads_queue_names=reads_queue_names)
        task = asyncio.create_task(node.live())
        try:
            yield node
        finally:
            node.die()
            await task


@dataclass(frozen=True)
class Running:
    """A running scheduler and its admin API."""

    scheduler: Scheduler
    api: httpx.AsyncClient
    client: Client
    """Sees everything, unlike the scheduler's own."""

    async def get(self, path: str) -> dict[str, Any]:
        """The answer of the admin API."""
        response = await self.api.get(path)
        response.raise_for_status()
        return response.json()

    async def push(self, made: Made) -> dict[str, Any]:
        """Push a bundle."""
        await self.send(made)
        response = await self.api.put(f"/admin/v1/bundles/{made.digest}", json=made.body)
        response.raise_for_status()
        return response.json()

    async def send(self, made: Made) -> None:
        """Send a bundle's chunks."""
        for sha256, content in made.chunks.items():
            response = await self.api.post(
                f"/admin/v1/chunks?sha256={sha256.hex()}", content=content
            )
            response.raise_for_status()

    async def put(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Declare a deployment."""
        response = await self.api.put(f"/admin/v1/deployments/{name}", json=body)
        response.raise_for_status()
        return response.json()


@contextlib.asynccontextmanager
async def scheduling(bus: Bus, name: str = "s1") -> AsyncIterator[Running]:
    """A scheduler on the bus, its admin API on a real socket."""
    settings = Settings(
        **bus.settings("scheduler").model_dump(),
        operator_token=SecretStr(TOKEN),
        http_port=0,
        ops_port=0,
        scheduler_id=name,
        bundle_approvers=[KEY.public],
        bundle_publishers=[PUBLISHER.public],
        bundle_max_bytes=4 * 1024 * 1024,
    )
    async with bus.connected("scheduler") as client, bus.connected("provisioner") as observer:
        scheduler = Scheduler(settings, client)
        async with (
            scheduler.running(),
            serve_http(scheduler.application, "127.0.0.1", 0) as port,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {TOKEN}"},
                timeout=30,
                verify=False,  # no TLS: reading all those CAs takes 45 ms of CPU each time
            ) as api,
        ):
            yield Running(scheduler, api, observer)


async def placement_of(client: Client, node: str) -> NodePlacement | None:
    """What a node is told to hold."""
    value = await _value(client, topology.PLACEMENTS.name, node)
    return None if value is None else NodePlacement.FromString(value)


async def route_of(client: Client, deployment: str) -> Route | None:
    """How gateways are told to reach a deployment."""
    value = await _value(client, topology.ROUTES.name, deployment)
    return None if value is None else Route.FromString(value)


async def queues_of(client: Client, region: str) -> set[str]:
    """Names of the work queues that exist."""
    stream = topology.work_stream(region).name
    try:
        infos = await client.jetstream(timeout=1).consumers_info(stream)
    except (NotFoundError, TimeoutError):
        return set()
    return {info.name for info in infos}


async def _value(client: Client, bucket: str, key: str) -> bytes | None:
    store = await client.jetstream(timeout=2).key_value(bucket)
    try:
        return (await store.get(key)).value
    except KeyNotFoundError:
        return None


_REPORT_EVERY_S = 0.5
"""As a gateway's heartbeat."""
_LOOK_EVERY_S = 0.05
"""How often a node that obeys looks at what it is told."""


@dataclass
class FakeGateway:
    """A gateway as far as the scheduler can tell: it reports what it carries."""

    client: Client
    load: DeploymentLoad = field(default_factory=lambda: DeploymentLoad(deployment="simple"))

    async def report(self) -> None:
        """Say it now."""
        status = GatewayStatus(gateway_id="g1", region="r1", run_id="a", loads=[self.load])
        subject = f"$KV.{topology.GATEWAYS.name}.g1"
        await self.client.publish(subject, status.SerializeToString())

    async def live(self) -> None:
        """Say it again and again."""
        while True:
            await self.report()
            await asyncio.sleep(_REPORT_EVERY_S)


@dataclass(frozen=True)
class Leases:
    """When what is in the bucket of leases was written, by the server's clock."""

    written_at: dict[str, list[datetime]] = field(default_factory=dict[str, list[datetime]])

    def last_of(self, key: str) -> datetime:
        """The last sign of life."""
        return self.written_at[key][-1]

    async def stalled(self, begin: datetime, end: datetime) -> timedelta:
        """For how long no part of this process could act, nor hear, between two moments: its
        pulse was late, and after a pause that is long nobody's silence counts for a while."""

        async def beaten() -> list[datetime]:
            return self.written_at.get(topology.PULSE, [])

        pulses = await eventually(
            beaten, within_s=30, what="a pulse", until=lambda them: bool(them) and them[-1] > end
        )
        gaps = [
            later - earlier
            for earlier, later in itertools.pairwise(pulses)
            if later > begin and earlier < end
        ]
        late = [max(timedelta(), gap - topology.PULSE_INTERVAL) for gap in gaps]
        deaf = sum(gap.total_seconds() > DEAF_AFTER_S for gap in gaps)
        return sum(late, start=timedelta(seconds=GRACE_S) * deaf)


@contextlib.asynccontextmanager
async def leases_heard(client: Client) -> AsyncIterator[Leases]:
    """Note every lease and pulse until the end of the block."""
    heard = Leases()

    async def note(message: Msg) -> None:
        key = message.subject.rpartition(f"$KV.{topology.LEASES.name}.")[2]
        heard.written_at.setdefault(key, []).append(message.metadata.timestamp)

    subscription = await client.jetstream().subscribe(
        f"$KV.{topology.LEASES.name}.>",
        cb=note,
        ordered_consumer=True,
        deliver_policy=DeliverPolicy.NEW,
    )
    try:
        yield heard
    finally:
        await subscription.unsubscribe()


@contextlib.asynccontextmanager
async def gateway_on(bus: Bus) -> AsyncIterator[FakeGateway]:
    """A gateway that lives as long as the context."""
    async with bus.connected("gateway") as client:
        gateway = FakeGateway(client)
        task = asyncio.create_task(gateway.live())
        try:
            yield gateway
        finally:
            task.cancel()


@contextlib.asynccontextmanager
async def obeying(running: Running, nodes: list[FakeNode]) -> AsyncIterator[None]:
    """Nodes that serve whatever they are told to hold."""

    async def obey() -> None:
        told: list[Any] = [None] * len(nodes)
        while True:
            for at, node in enumerate(nodes):
                placement = await placement_of(running.client, node.key)
                if placement and list(placement.replicas) != told[at]:
                    told[at] = list(placement.replicas)
                    await node.serve(placement)
            await asyncio.sleep(_LOOK_EVERY_S)

    task = asyncio.create_task(obey())
    try:
        yield
    finally:
        task.cancel()


def refusal(response: httpx.Response, said: str = "") -> int:
    """The status of an answer that is an error in the API's own shape and says this."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code"}
    assert said in error["message"]
    return response.status_code
