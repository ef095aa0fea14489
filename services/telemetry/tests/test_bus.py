"""The service on a real NATS: what it follows, and that it survives the server's restart."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from busbar_contracts.billing.v1.events_pb2 import PostedCharge, UsagePosted
from busbar_contracts.gateway.v1.status_pb2 import DeploymentLoad, GatewayStatus
from busbar_contracts.node.v1.events_pb2 import TritonLost
from busbar_contracts.node.v1.status_pb2 import (
    NodeCapacity,
    NodeLease,
    NodeStatus,
    ReplicaState,
    ReplicaStatus,
    TritonState,
)
from busbar_contracts.scheduler.v1.deployment_pb2 import Deployment, ModelManifest, ModelTask
from busbar_contracts.scheduler.v1.plan_pb2 import (
    NodePlacement,
    ReplicaAssignment,
    Route,
    RouteTarget,
)
from busbar_messaging import provision, topology
from busbar_messaging.connection import BusSettings, close, connect
from busbar_runtime.ports import PortPool
from busbar_runtime.pytest_plugin import NatsServer
from busbar_telemetry.main import serve
from busbar_telemetry.settings import TelemetrySettings
from google.protobuf.message import Message
from harness.polling import eventually
from harness.pulse import pulse
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

TOKEN = "operator-token-of-the-tests"


def settings_of(nats_server: NatsServer, user: str) -> dict[str, Any]:
    return {
        "nats_url": nats_server.url,
        "nats_user": user,
        "nats_password": nats_server.credentials[user],
    }


@dataclass(frozen=True)
class Own:
    """Names that no other test has: what the bus and the service have seen, they keep."""

    site: str

    @property
    def node(self) -> str:
        return f"r1.{self.site}.n1"

    @property
    def deployment(self) -> str:
        return f"embed-{self.site}"

    @property
    def gateway(self) -> str:
        return f"g-{self.site}"

    @property
    def nonsense(self) -> bytes:
        """No message of any kind."""
        return b"\xff\xff\xff" + self.site.encode()


@pytest.fixture
def own() -> Own:
    return Own(f"s{secrets.token_hex(4)}")


@dataclass(frozen=True)
class Service:
    """A running telemetry service and the operator's client to it."""

    client: httpx.AsyncClient
    ops_url: str

    async def fleet(self) -> dict[str, Any]:
        answer = await self.client.get("/admin/v1/fleet")
        answer.raise_for_status()
        return answer.json()

    async def node(self, name: str) -> dict[str, Any]:
        """A node as the fleet shows it; empty when it does not."""
        fleet = await self.fleet()
        return next((one for one in fleet["nodes"] if one["node"] == name), {})

    async def events_of(self, subject: str) -> list[dict[str, Any]]:
        """What the fleet shows of one node or tenant, newest first."""
        return [one for one in (await self.fleet())["events"] if one["subject"] == subject]

    async def metrics(self) -> str:
        return (await self.client.get(f"{self.ops_url}/metrics")).text


@pytest.fixture(scope="module")
async def bus(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client that may write for everybody, on a provisioned bus."""
    settings = provision.ProvisionSettings(**settings_of(nats_server, "provisioner"))
    client = await connect(BusSettings(**settings_of(nats_server, "provisioner")), "test")
    await provision.apply(client, settings)
    async with pulse(client):
        yield client
    await close(client)


@pytest.fixture(scope="module")
async def service(nats_server: NatsServer, bus: Client) -> AsyncIterator[Service]:
    pool = PortPool()
    http, ops, otlp_http, otlp_grpc = (pool.take() for _ in range(4))
    settings = TelemetrySettings(
        **settings_of(nats_server, "telemetry"),
        operator_token=TOKEN,  # pyright: ignore[reportArgumentType]
        http_port=http,
        ops_port=ops,
        otlp_http_port=otlp_http,
        otlp_grpc_port=otlp_grpc,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(serve(settings, stop))
    headers = {"authorization": f"Bearer {TOKEN}"}
    url, ops_url = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{ops}"
    async with httpx.AsyncClient(
        base_url=url, headers=headers, trust_env=False, verify=False
    ) as client:

        async def ready() -> bool:
            try:
                return (await client.get(f"{ops_url}/readyz")).is_success
            except httpx.TransportError:
                return False

        await eventually(ready, within_s=20, what="telemetry is ready")
        yield Service(client, ops_url)
    stop.set()
    await asyncio.wait_for(running, 10)
    pool.close()


async def put(bus: Client, bucket: topology.BucketSpec, key: str, message: Message) -> None:
    store = await bus.jetstream(timeout=10).key_value(bucket.name)
    await store.put(key, message.SerializeToString())


async def report_node(bus: Client, own: Own, in_flight: int) -> None:
    replica = ReplicaStatus(
        deployment=own.deployment,
        state=ReplicaState.REPLICA_STATE_READY,
        slots=4,
        model_config=b"x" * 99,
    )
    status = NodeStatus(
        node=own.node,
        capacity=NodeCapacity(memory_mib=4096, slots=8),
        triton_state=TritonState.TRITON_STATE_READY,
        replicas=[replica],
    )
    await put(bus, topology.NODES, own.node, status)
    lease = NodeLease(node=own.node, ready=True, in_flight=in_flight)
    await put(bus, topology.LEASES, own.node, lease)


async def declare(bus: Client, own: Own) -> None:
    manifest = ModelManifest(name="minilm", version="1", task=ModelTask.MODEL_TASK_EMBED)
    declared = Deployment(name=own.deployment, manifest=manifest, replicas=1)
    await put(bus, topology.DEPLOYMENTS, own.deployment, declared)


async def publish_event(bus: Client, service: str, fact: str, data: bytes) -> None:
    await bus.jetstream(timeout=10).publish(topology.event_subject(service, fact), data)


async def test_what_is_in_the_buckets_is_in_the_fleet(
    bus: Client, service: Service, own: Own
) -> None:
    await declare(bus, own)
    target = RouteTarget(region="r1", ready_slots=4, ready_replicas=1)
    route = Route(deployment=own.deployment, targets=[target])
    await put(bus, topology.ROUTES, own.deployment, route)
    wanted = [ReplicaAssignment(deployment=name) for name in (own.deployment, "chat")]
    await put(bus, topology.PLACEMENTS, own.node, NodePlacement(node=own.node, replicas=wanted))
    for completed in (100, 150):
        load = DeploymentLoad(
            deployment=own.deployment, queued=5, in_flight=2, completed_count=completed
        )
        status = GatewayStatus(gateway_id=own.gateway, run_id="a", loads=[load])
        await put(bus, topology.GATEWAYS, own.gateway, status)

    async def look() -> tuple[dict[str, Any], str]:
        await report_node(bus, own, in_flight=3)  # so that it is heard of however long this takes
        return await service.fleet(), await service.metrics()

    def complete(seen: tuple[dict[str, Any], str]) -> bool:
        fleet, metrics = seen
        counted = [g["completed_count"] for g in fleet["gateways"] if g["gateway"] == own.gateway]
        known = [d for d in fleet["deployments"] if d["deployment"] == own.deployment]
        alive = f'busbar_nodes{{region="r1",site="{own.site}",state="ok"}} 1.0' in metrics
        return counted == [150] and len(known) == 1 and alive

    fleet, metrics = await eventually(look, within_s=30, what="a full fleet", until=complete)
    [node] = [one for one in fleet["nodes"] if one["node"] == own.node]
    [deployment] = [one for one in fleet["deployments"] if one["deployment"] == own.deployment]
    assert (node["state"], node["in_flight"], node["ready_slots"]) == ("ok", 3, 4)
    assert [(r["deployment"], r["state"]) for r in node["replicas"]] == [
        ("chat", "missing"),
        (own.deployment, "ready"),
    ]
    assert (deployment["state"], deployment["task"], deployment["queued"]) == ("ready", "embed", 5)
    assert f'busbar_deployment_queued{{deployment="{own.deployment}"}} 5.0' in metrics


async def test_a_silent_node_turns_suspect(bus: Client, service: Service, own: Own) -> None:
    await report_node(bus, own, in_flight=0)

    async def state() -> str:
        return (await service.node(own.node)).get("state", "")

    await eventually(state, within_s=30, what="a suspect", until=lambda now: now == "suspect")
    fleet = await service.fleet()
    [totals] = [
        site["totals"]
        for region in fleet["regions"]
        for site in region["sites"]
        if site["site"] == own.site
    ]
    assert (totals["nodes"], totals["nodes_suspect"], totals["slots"]) == (1, 1, 0)


async def test_events_are_shown_counted_or_dead_lettered(
    bus: Client, service: Service, own: Own
) -> None:
    currency, unknown = own.site.upper(), f"moon-rose-{own.site}"
    charges = [PostedCharge(amount_nanos=n, currency=currency) for n in (5, 7)]
    await publish_event(
        bus, "billing", "usage_posted", UsagePosted(charges=charges).SerializeToString()
    )
    await publish_event(bus, "node", "triton_lost", own.nonsense)
    await publish_event(bus, "scheduler", unknown, own.nonsense)
    lost = TritonLost(node=own.node, reason="exited with signal 9", handed_back=2)
    await publish_event(bus, "node", "triton_lost", lost.SerializeToString())

    [event] = await eventually(
        lambda: service.events_of(own.node), within_s=30, what="the event", until=bool
    )
    others = [one for one in (await service.fleet())["events"] if one["fact"] == unknown]
    assert (event["fact"], event["severity"]) == ("triton_lost", "error")
    assert "signal 9, 2 requests handed back" in event["text"]
    assert [(one["severity"], one["subject"]) for one in others] == [("info", "")]
    charged = f'busbar_charged_nanos_total{{currency="{currency}"}} 12.0'
    assert charged in await service.metrics()

    subject = topology.dead_letter_subject("telemetry", "telemetry-events")
    dead = await bus.jetstream(timeout=10).get_last_msg(topology.DLQ.name, subject)
    headers = dead.headers or {}
    assert dead.data == own.nonsense
    assert "TritonLost" in headers["Busbar-Reason"]
    assert headers["Busbar-Stream"] == topology.EVENTS.name
    assert int(headers["Busbar-Sequence"]) > 0


async def test_an_entry_that_is_no_message_changes_nothing(
    bus: Client, service: Service, own: Own
) -> None:
    store = await bus.jetstream(timeout=10).key_value(topology.NODES.name)
    await store.put("not-a-node", b"")
    bad, good = f"r1.{own.site}.n2", f"r1.{own.site}.n3"
    await store.put(bad, own.nonsense)
    await store.put(good, NodeStatus(node=good).SerializeToString())

    await eventually(lambda: service.node(good), within_s=30, what="the good entry")
    assert await service.node(bad) == {}


async def test_a_killed_server_costs_the_view_nothing_but_time(
    bus: Client, service: Service, nats_server: NatsServer, own: Own
) -> None:
    await declare(bus, own)
    await report_node(bus, own, in_flight=0)
    await nats_server.platform.kill("nats", signal.SIGKILL)

    async def unready() -> bool:
        return (await service.client.get(f"{service.ops_url}/readyz")).status_code == 503

    await eventually(unready, within_s=30, what="telemetry says that it hears nothing")
    settings = provision.ProvisionSettings(**settings_of(nats_server, "provisioner"))

    async def reported() -> bool:
        with suppress(NatsError, JetStreamError, TimeoutError):
            await provision.apply(bus, settings)
            await report_node(bus, own, in_flight=7)
            return True
        return False

    await eventually(reported, within_s=60, what="the node reports again")
    created = TritonLost(node=own.node, reason="the power went").SerializeToString()
    await publish_event(bus, "node", "triton_lost", created)

    async def caught_up() -> bool:
        node, told = await service.node(own.node), await service.events_of(own.node)
        return node.get("in_flight") == 7 and ["power" in one["text"] for one in told] == [True]

    await eventually(caught_up, within_s=60, what="the fleet")
    fleet = await service.fleet()
    known = [one["deployment"] for one in fleet["deployments"]]
    assert fleet["bus"] == {"connected": True}
    assert known.count(own.deployment) == 1
