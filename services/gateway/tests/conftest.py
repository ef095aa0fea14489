"""Fixtures of the gateway's tests: a whole gateway in this process, on a real bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from busbar_contracts.billing.v1.keys_pb2 import ApiKey
from busbar_gateway.adapters.metrics import Metrics
from busbar_messaging.connection import close, connect
from busbar_messaging.provision import ProvisionSettings, apply
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import (
    KEY,
    OTHER_REGION,
    REGION,
    TENANT,
    Platform,
    a_gateway,
    bus_settings,
    gateway_settings,
    put_key,
)
from nats.aio.client import Client


@pytest.fixture(scope="session")
async def provisioner(nats_server: NatsServer) -> AsyncIterator[Client]:
    settings = ProvisionSettings(
        regions=[REGION, OTHER_REGION], **bus_settings(nats_server, "provisioner")
    )
    client = await connect(settings, "test-provisioner")
    await apply(client, settings)
    yield client
    await close(client)


@pytest.fixture(scope="session")
def metrics() -> Metrics:
    """One for the process, as in production."""
    return Metrics()


@pytest.fixture(scope="session")
async def keys(provisioner: Client) -> None:
    """One key that is good for everything."""
    await put_key(provisioner, KEY, ApiKey(key_id="key-1", tenant_id=TENANT))


@pytest.fixture
async def platform(
    nats_server: NatsServer, provisioner: Client, keys: None, metrics: Metrics, tmp_path: Path
) -> AsyncIterator[Platform]:
    settings = gateway_settings(nats_server, tmp_path)
    async with a_gateway(nats_server, provisioner, metrics, settings) as platform:
        yield platform
