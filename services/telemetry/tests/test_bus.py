"""The service on a real NATS: what it follows, and that it survives the server's restart."""

from __future__ import annotations

import asyncio
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

NODE = "r1.s1.n1"
TOKEN = "operator-token-of-the-tests"


def settings_of(nats_server: NatsServer, user: str) -> dict[str, Any]:
    return {
        "nats_url": nats_server.url,
        "nats_user": user,
        "nats_password": nats_server.credentials[user],
    }


@dataclass(frozen=True)
class Service:
    """A running telemetry service and the operator's client to it."""

    client: httpx.AsyncClient
    ops_url: str

    async def fleet(self) -> dict[str, Any]:
        answer = await self.client.get("/admin/v1/fleet")
        answer.raise_for_status()
        return answer.json()

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


async def report_node(bus: Client, in_flight: int) -> None:
    replica = ReplicaStatus(
        deployment="embed", state=ReplicaState.REPLICA_STATE_READY, slots=4, model_config=b"x" * 99
    )
    status = NodeStatus(
        node=NODE,
        capacity=NodeCapacity(memory_mib=4096, slots=8),
        triton_state=TritonState.TRITON_STATE_READY,
        replicas=[replica],
    )
    await put(bus, topology.NODES, NODE, status)
    await put(bus, topology.LEASES, NODE, NodeLease(node=NODE, ready=True, in_flight=in_flight))


async def publish_event(bus: Client, service: str, fact: str, data: bytes) -> None:
    await bus.jetstream(timeout=10).publish(topology.event_subject(service, fact), data)


async def test_what_is_in_the_buckets_is_in_the_fleet(bus: Client, service: Service) -> None:
    await report_node(bus, in_flight=3)
    manifest = ModelManifest(name="minilm", version="1", task=ModelTask.MODEL_TASK_EMBED)
    await put(
        bus, topology.DEPLOYMENTS, "embed", Deployment(name="embed", manifest=manifest, replicas=1)
    )
    target = RouteTarget(region="r1", ready_slots=4, ready_replicas=1)
    await put(bus, topology.ROUTES, "embed", Route(deployment="embed", targets=[target]))
    wanted = [ReplicaAssignment(deployment="embed"), ReplicaAssignment(deployment="chat")]
    await put(bus, topology.PLACEMENTS, NODE, NodePlacement(node=NODE, replicas=wanted))
    for completed in (100, 150):
        load = DeploymentLoad(deployment="embed", queued=5, in_flight=2, completed_count=completed)
        await put(
            bus, topology.GATEWAYS, "g1", GatewayStatus(gateway_id="g1", run_id="a", loads=[load])
        )

    def complete(fleet: dict[str, Any]) -> bool:
        return bool(fleet["nodes"] and fleet["deployments"] and fleet["gateways"]) and (
            fleet["gateways"][0]["completed_count"] == 150
        )

    fleet = await eventually(service.fleet, within_s=10, what="a full fleet", until=complete)
    [node], [deployment] = fleet["nodes"], fleet["deployments"]
    assert (node["state"], node["in_flight"], node["ready_slots"]) == ("ok", 3, 4)
    assert [(r["deployment"], r["state"]) for r in node["replicas"]] == [
        ("chat", "missing"),
        ("embed", "ready"),
    ]
    assert (deployment["state"], deployment["task"], deployment["queued"]) == ("ready", "embed", 5)
    metrics = await service.metrics()
    assert 'busbar_nodes{region="r1",site="s1",state="ok"} 1.0' in metrics
    assert 'busbar_deployment_queued{deployment="embed"} 5.0' in metrics


async def test_a_silent_node_turns_suspect(bus: Client, service: Service) -> None:
    await report_node(bus, in_flight=0)

    def suspect(fleet: dict[str, Any]) -> bool:
        return [node["state"] for node in fleet["nodes"]] == ["suspect"]

    fleet = await eventually(service.fleet, within_s=8, what="a suspect", until=suspect)
    assert fleet["totals"]["nodes_suspect"] == 1
    assert fleet["totals"]["slots"] == 0


async def test_events_are_shown_counted_or_dead_lettered(bus: Client, service: Service) -> None:
    charges = [PostedCharge(amount_nanos=n, currency="USD") for n in (5, 7)]
    await publish_event(
        bus, "billing", "usage_posted", UsagePosted(charges=charges).SerializeToString()
    )
    await publish_event(bus, "node", "triton_lost", b"\xff\xff\xff")
    await publish_event(bus, "scheduler", "moon_rose", b"\xff\xff\xff")
    lost = TritonLost(node=NODE, reason="exited with signal 9", handed_back=2)
    await publish_event(bus, "node", "triton_lost", lost.SerializeToString())

    def told(fleet: dict[str, Any]) -> bool:
        return len(fleet["events"]) >= 2

    fleet = await eventually(service.fleet, within_s=10, what="the events", until=told)
    assert [(e["fact"], e["severity"], e["subject"]) for e in fleet["events"]] == [
        ("triton_lost", "error", NODE),
        ("moon_rose", "info", ""),
    ]
    assert "signal 9, 2 requests handed back" in fleet["events"][0]["text"]
    assert 'busbar_charged_nanos_total{currency="USD"} 12.0' in await service.metrics()
    jetstream = bus.jetstream(timeout=10)
    dead = await jetstream.get_last_msg(
        topology.DLQ.name, topology.dead_letter_subject("telemetry", "telemetry-events")
    )
    assert dead.data == b"\xff\xff\xff"
    headers = dead.headers or {}
    assert "TritonLost" in headers["Busbar-Reason"]
    assert headers["Busbar-Stream"] == topology.EVENTS.name
    assert int(headers["Busbar-Sequence"]) > 0


async def test_an_entry_that_is_no_message_changes_nothing(bus: Client, service: Service) -> None:
    store = await bus.jetstream(timeout=10).key_value(topology.NODES.name)
    await store.put("not-a-node", b"")
    await store.put("r1.s1.n2", b"\xff\xff\xff")
    await store.put("r1.s1.n3", NodeStatus(node="r1.s1.n3").SerializeToString())

    def arrived(fleet: dict[str, Any]) -> bool:
        return any(node["name"] == "n3" for node in fleet["nodes"])

    fleet = await eventually(service.fleet, within_s=10, what="the good entry", until=arrived)
    assert "n2" not in {node["name"] for node in fleet["nodes"]}


async def test_a_killed_server_costs_the_view_nothing_but_time(
    bus: Client, service: Service, nats_server: NatsServer
) -> None:
    await report_node(bus, in_flight=0)
    await nats_server.platform.kill("nats", signal.SIGKILL)

    async def unready() -> bool:
        return (await service.client.get(f"{service.ops_url}/readyz")).status_code == 503

    await eventually(unready, within_s=10, what="telemetry says that it hears nothing")
    settings = provision.ProvisionSettings(**settings_of(nats_server, "provisioner"))

    async def reported() -> bool:
        with suppress(NatsError, JetStreamError, TimeoutError):
            await provision.apply(bus, settings)
            await report_node(bus, in_flight=7)
            return True
        return False

    await eventually(reported, within_s=15, what="the node reports again")
    created = TritonLost(node=NODE, reason="the power went").SerializeToString()
    await publish_event(bus, "node", "triton_lost", created)

    def caught_up(fleet: dict[str, Any]) -> bool:
        known = {node["node"]: node for node in fleet["nodes"]}
        told = any("power" in event["text"] for event in fleet["events"])
        return known[NODE]["in_flight"] == 7 and told

    fleet = await eventually(service.fleet, within_s=30, what="the fleet", until=caught_up)
    assert fleet["bus"] == {"connected": True}
    assert [deployment["deployment"] for deployment in fleet["deployments"]] == ["embed"]
