"""Gateways that share a region share its slots."""

from __future__ import annotations

from pathlib import Path

from busbar_contracts.gateway.v1.status_pb2 import DeploymentLoad, GatewayStatus
from busbar_gateway.adapters.metrics import Metrics
from busbar_messaging import topology
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import (
    OTHER_REGION,
    REGION,
    Platform,
    a_gateway,
    eventually,
    gateway_settings,
    request,
)
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError


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
    other = gateway_settings(nats_server, tmp_path / "other")
    alone = dict(platform.gateway.admissions.shares(name))
    async with a_gateway(nats_server, provisioner, metrics, other):
        await eventually(lambda: platform.gateway.admissions.shares(name) == {REGION: 0.5})

    await eventually(lambda: platform.gateway.admissions.shares(name) == alone, within_s=3)
    assert alone == {REGION: 1.0}  # it said goodbye: nobody waited for its silence


async def test_what_another_region_s_gateway_asks_for_is_left_to_it(
    platform: Platform, provisioner: Client
) -> None:
    name, _ = await platform.deploy(slots=4, other_slots=4)
    await platform.infer(request(name))
    lane = platform.gateway.admissions.lane(name)
    assert lane is not None
    bucket = await provisioner.jetstream().key_value(topology.GATEWAYS.name)

    async def shares(asked: int) -> dict[str, float]:
        load = DeploymentLoad(deployment=name, in_flight=asked)
        far = GatewayStatus(gateway_id="far", region=OTHER_REGION, run_id="1", loads=[load])
        await bucket.put("far", far.SerializeToString())
        return dict(platform.gateway.admissions.shares(name))

    async def lent() -> bool:
        return await shares(1) == {REGION: 1.0, OTHER_REGION: 0.75}

    async def wanted_back() -> bool:
        return await shares(9) == {REGION: 1.0, OTHER_REGION: 0.0}

    await eventually(lent)
    await eventually(lambda: lane.limit >= 7)
    await eventually(wanted_back)
    await eventually(lambda: lane.limit <= 6)  # four, a quarter and one
    await bucket.delete("far")

    await eventually(
        lambda: platform.gateway.admissions.shares(name) == {REGION: 1.0, OTHER_REGION: 1.0}
    )
    assert lane.limit >= 8


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
