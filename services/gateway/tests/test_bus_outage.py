"""The bus goes away under load and comes back without what it had in memory."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from busbar_contracts.billing.v1.keys_pb2 import ApiKey
from busbar_gateway.adapters.metrics import Metrics
from busbar_messaging import topology
from busbar_messaging.connection import close, connect
from busbar_messaging.provision import ProvisionSettings, apply
from busbar_runtime.platform import Platform as Parts
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import (
    KEY,
    OTHER_REGION,
    REGION,
    TENANT,
    Platform,
    a_gateway,
    bus_settings,
    eventually,
    gateway_settings,
    put_key,
    request,
)
from nats.aio.client import Client


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A bus that may be killed: nobody else uses it."""
    parts = Parts(tmp_path / "parts", parts=["nats"])
    parts.launch()
    found = parts.endpoints
    yield NatsServer(found["nats"], found["nats_monitor"], found["nats_credentials"], parts)
    parts.shutdown()


@pytest.fixture
async def own_provisioner(own_nats: NatsServer) -> AsyncIterator[Client]:
    settings = ProvisionSettings(
        regions=[REGION, OTHER_REGION], **bus_settings(own_nats, "provisioner")
    )
    client = await connect(settings, "test-provisioner")
    await apply(client, settings)
    await put_key(client, KEY, ApiKey(key_id="key-1", tenant_id=TENANT))
    yield client
    await close(client)


async def test_requests_pause_while_the_bus_restarts_and_are_charged_once(
    own_nats: NatsServer, own_provisioner: Client, metrics: Metrics, tmp_path: Path
) -> None:
    settings = gateway_settings(own_nats, tmp_path / "state")
    async with a_gateway(own_nats, own_provisioner, metrics, settings) as platform:
        name, agent = await platform.deploy()
        await platform.infer(request(name))
        calls = [asyncio.create_task(platform.infer(request(name), 40)) for _ in range(20)]
        os.kill(own_nats.platform.endpoints["pids"]["nats"], signal.SIGKILL)
        calls += [asyncio.create_task(platform.infer(request(name), 40)) for _ in range(20)]
        await eventually(lambda: not own_provisioner.is_connected)
        await eventually(lambda: own_provisioner.is_connected, within_s=30)
        await restore(own_nats, own_provisioner, name)
        await asyncio.gather(*calls)

        await eventually(lambda: platform.gateway.usage.idle)
        await usage_agrees(platform, answered=41)
        assert len({work.request_id for work in agent.works}) == 41


async def restore(server: NatsServer, provisioner: Client, deployment: str) -> None:
    """What the provisioner and the scheduler do."""
    settings = ProvisionSettings(
        regions=[REGION, OTHER_REGION], **bus_settings(server, "provisioner")
    )
    await apply(provisioner, settings)
    spec = topology.work_consumer(REGION, deployment)
    await provisioner.jetstream().add_consumer(spec.stream, spec.config())


async def usage_agrees(platform: Platform, answered: int) -> None:
    usage = await platform.usage()
    assert len(usage.charged) == answered
    assert len({r.request_id for r in usage.records}) == len(usage.records)
