"""A node agent as it runs in production: its own process, a real NATS, a real Triton."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from busbar_messaging import provision
from busbar_messaging.bundles.store import BundleStore
from busbar_messaging.connection import close, connect
from busbar_messaging.topology import NodeId, measured_stream, work_stream
from busbar_runtime.home import Home
from busbar_runtime.ports import PortPool
from busbar_runtime.triton import ensure_triton
from busbar_runtime.triton_probe import TritonServer, started
from harness.bundles import KEY
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
    client = await connect(provisioning(nats_server, "r1"), "node-agent tests")
    yield client
    await close(client)


@pytest.fixture(scope="module")
async def model_store(nats_server: NatsServer, bus: Client) -> BundleStore:
    """The model store of a real bus."""
    await provision.apply(bus, provisioning(nats_server, "models"))
    return BundleStore(bus)


@pytest.fixture(scope="module")
def home_name() -> str:
    """What the folder of `node` is called; a module may say otherwise."""
    return "node"


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    """What else the agent of `node` is told; a module may say otherwise."""
    return {}


@pytest.fixture(scope="module")
async def node(
    nats_server: NatsServer,
    bus: Client,
    triton_command: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    *,
    home_name: str,
    settings: Mapping[str, str],
) -> AsyncIterator[NodeBench]:
    """A running agent with nothing placed on it, in a region of its own."""
    triton = {"BUSBAR_TRITON_COMMAND": json.dumps(triton_command), **settings}
    home = tmp_path_factory.mktemp(home_name)
    async with _running(nats_server, bus, home, triton) as bench:
        yield bench


@dataclass(frozen=True)
class Attached:
    """An agent beside a Triton that is not its own."""

    node: NodeBench
    triton: TritonServer


@pytest.fixture(scope="module")
async def attached(
    nats_server: NatsServer, bus: Client, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Attached]:
    """As `node`, but with a Triton that somebody else started."""
    home = tmp_path_factory.mktemp("attached")
    repository = home / "repository"
    repository.mkdir()
    command = ensure_triton(Home.of().cache).argv
    with started(command, repository=repository, log=home / "triton.log") as triton:
        settings = {
            "BUSBAR_TRITON_GRPC_URL": triton.grpc_address,
            "BUSBAR_MODEL_REPOSITORY": str(repository),
        }
        async with _running(nats_server, bus, home, settings) as bench:
            yield Attached(bench, triton)


@contextlib.asynccontextmanager
async def _running(
    nats_server: NatsServer, bus: Client, home: Path, triton: Mapping[str, str]
) -> AsyncIterator[NodeBench]:
    region, ports = f"t{next(_regions)}", PortPool()
    await provision.apply(bus, provisioning(nats_server, region))
    bench = NodeBench(
        bus,
        NodeId(region, "s1", "n1"),
        {
            **nats_server.environment("agent"),
            "BUSBAR_REGION": region,
            "BUSBAR_SITE": "s1",
            "BUSBAR_NODE": "n1",
            "BUSBAR_STATE_DIR": str(home / "state"),
            "BUSBAR_OPS_PORT": str(ports.take()),
            "BUSBAR_MEMORY_MIB": "2048",
            "BUSBAR_BUNDLE_APPROVERS": json.dumps([KEY.public]),
            **triton,
        },
        home,
    )
    await bench.listen()
    bench.start_agent()
    yield bench
    if bench.process is not None and bench.process.poll() is None:
        bench.stop_agent()
    ports.close()
    # The server has room for a few regions' streams, not for those of every module.
    for stream in (work_stream(region), measured_stream(region, "s1")):
        await bus.jetstream().delete_stream(stream.name)


def provisioning(nats_server: NatsServer, region: str) -> provision.ProvisionSettings:
    """One region with one site."""
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
