"""Gateways that share a region share its slots."""

from __future__ import annotations

from pathlib import Path

from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus
from busbar_gateway.adapters.metrics import Metrics
from busbar_messaging import topology
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import Platform, a_gateway, eventually, gateway_settings, request
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError


async def limit_of(platform: Platform, name: str) -> int:
    lane = platform.gateway.admissions.lane(name)
    return lane.limit if lane else 0


async def test_two_gateways_share_the_slots_until_one_leaves(
    platform: Platform,
    nats_server: NatsServer,
    provisioner: Client,
    metrics: Metrics,
    tmp_path: Path,
) -> None:
    name, _ = await platform.deploy(slots=8)
    await platform.infer(request(name))
    await eventually(lambda: platform.gateway.gateways.count() == 1)
    alone = await limit_of(platform, name)
    other = gateway_settings(nats_server, tmp_path / "other")
    async with a_gateway(nats_server, provisioner, metrics, other):
        await eventually(lambda: platform.gateway.gateways.count() == 2)
        lane = platform.gateway.admissions.lane(name)
        assert lane is not None
        await eventually(lambda: lane.limit < alone)

    await eventually(lambda: lane.limit == alone, within_s=2)  # it said goodbye


async def test_a_gateway_says_what_it_carries(platform: Platform, provisioner: Client) -> None:
    name, _ = await platform.deploy()
    for _ in range(3):
        await platform.infer(request(name))
    bucket = await provisioner.jetstream().key_value(topology.GATEWAYS.name)

    async def load() -> GatewayStatus | None:
        try:
            entry = await bucket.get(platform.gateway_id)
        except KeyNotFoundError:
            return None
        status = GatewayStatus.FromString(entry.value or b"")
        mine = [load for load in status.loads if load.deployment == name]
        return status if mine and mine[0].completed_count == 3 else None

    status = await eventually(load)

    [mine] = [load for load in status.loads if load.deployment == name]
    assert (mine.in_flight, mine.queued, mine.failed_count, mine.refused_count) == (0, 0, 0, 0)
    assert (mine.input_tokens, mine.output_tokens) == (9, 6)
    assert status.region == "r1"
