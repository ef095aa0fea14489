"""A gateway that starts: nobody is sent there before it listens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from busbar_gateway.main import serve_edges
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import Platform, eventually, gateway_settings


@pytest.fixture
def ports() -> Iterator[PortPool]:
    pool = PortPool()
    yield pool
    pool.close()


async def readyz(port: int) -> bytes:
    """What it says; empty where nobody listens."""
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return b""
    writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


async def test_it_says_that_it_is_ready_once_every_port_is_open(
    platform: Platform, nats_server: NatsServer, ports: PortPool, tmp_path: Path
) -> None:
    """This one has read all that there is to read: nothing but its ports is to be waited for."""
    http, grpc, ops = (ports.take() for _ in range(3))
    settings = gateway_settings(
        nats_server,
        tmp_path,
        http_port=http,
        grpc_port=grpc,
        ops_port=ops,
        stop_grace=timedelta(seconds=1),
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(serve_edges(settings, platform.gateway, stop))
    said: list[bytes] = []

    async def ready() -> bool:
        while not (answer := await readyz(ops)):
            await asyncio.sleep(0)
        said.append(answer)
        return b" 200 OK\r\n" in answer

    await eventually(ready)
    for port in (http, grpc):  # an OSError where nobody listens
        _, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.close()
    stop.set()
    await serving

    assert b" 503 " in said[0]
    assert b"it does not listen to customers yet" in said[0]
