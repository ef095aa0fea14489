"""A node agent as it runs in production: its own process, a real NATS, a real Triton."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import AsyncIterator
from typing import Protocol

import pytest
from busbar_messaging import provision
from busbar_messaging.connection import close, connect
from busbar_messaging.topology import NodeId
from busbar_runtime.home import Home
from busbar_runtime.triton import ensure_triton
from nats.aio.client import Client

from .node_bench import NodeBench

_regions = itertools.count(1)


class NatsServer(Protocol):
    """What the runtime's fixture gives."""

    def environment(self, user: str) -> dict[str, str]: ...


@pytest.fixture(scope="session")
def triton_command() -> list[str]:
    """The argv template of the embedded Triton."""
    return ensure_triton(Home.of().cache).command


@pytest.fixture(scope="session")
async def bus(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A connection that may do everything."""
    client = await connect(_provisioning(nats_server, "r1"), "node-agent tests")
    yield client
    await close(client)


@pytest.fixture(scope="module")
async def node(
    nats_server: NatsServer,
    bus: Client,
    triton_command: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[NodeBench]:
    """A running agent with nothing placed on it, in a region of its own."""
    region = f"t{next(_regions)}"
    await provision.apply(bus, _provisioning(nats_server, region))
    home = tmp_path_factory.mktemp(region)
    bench = NodeBench(
        bus,
        NodeId(region, "s1", "n1"),
        {
            **nats_server.environment("agent"),
            "BUSBAR_REGION": region,
            "BUSBAR_SITE": "s1",
            "BUSBAR_NODE": "n1",
            "BUSBAR_STATE_DIR": str(home / "state"),
            "BUSBAR_OPS_PORT": str(free_port()),
            "BUSBAR_TRITON_COMMAND": json.dumps(triton_command),
            "BUSBAR_MEMORY_MIB": "2048",
        },
        home,
    )
    await bench.listen()
    bench.start_agent()
    yield bench
    if bench.process is not None and bench.process.poll() is None:
        bench.stop_agent()


def _provisioning(nats_server: NatsServer, region: str) -> provision.ProvisionSettings:
    environment = nats_server.environment("provisioner")
    return provision.ProvisionSettings.model_validate(
        {
            "nats_url": environment["BUSBAR_NATS_URL"],
            "nats_user": environment["BUSBAR_NATS_USER"],
            "nats_password": environment["BUSBAR_NATS_PASSWORD"],
            "regions": [region],
            "sites": [f"{region}/s1"],
        }
    )


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
