"""Connections that say nothing, more than a shell lets a process have files."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import pytest
from busbar_runtime.platform import Platform
from harness.another_gateway import another_gateway
from harness.operator import Operator
from harness.polling import eventually
from harness.steady_load import Clients

SHELLS_LIMIT = 1_024
CONNECTIONS = 1_100
"""To each port."""
AT_ONCE = 3_000
WITHIN_S = 30


@contextmanager
def files(soft: int) -> Iterator[None]:
    """As many may this process, and what it starts meanwhile, have open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < soft:
        pytest.skip(f"this machine allows {before[1]} open files, {soft} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_customers_are_served_beside_a_thousand_silent_connections_to_each_port(
    platform: Platform, operator: Operator, tmp_path: Path
) -> None:
    customer = await operator.customer()
    async with AsyncExitStack() as stack:
        with files(SHELLS_LIMIT):
            made = another_gateway(platform, tmp_path, gateway_id="crowded")
            gateway = await stack.enter_async_context(made)
        await operator.known(customer.key, gateway.http)
        stack.enter_context(files(SHELLS_LIMIT + 2 * CONNECTIONS))
        for address in (gateway.grpc, gateway.http.removeprefix("http://")):
            host, _, port = address.rpartition(":")
            for _ in range(CONNECTIONS):
                silent = socket.create_connection((host, int(port)), timeout=10)
                stack.enter_context(silent)
        clients = Clients(gateway.grpc, gateway.http, customer.key)
        ids = [await clients.tensors(), await clients.embeddings()]
        await clients.close()
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            probe = await client.get(f"{gateway.ops}/healthz")

    assert all(ids)
    assert probe.status_code == 200


async def test_a_gateway_that_was_left_without_a_file_serves_again(
    platform: Platform, operator: Operator, tmp_path: Path
) -> None:
    """More at once than may be open, of which none ends by itself."""
    customer = await operator.customer()
    made = another_gateway(platform, tmp_path, gateway_id="full", files_max=SHELLS_LIMIT)
    async with made as gateway:
        await operator.known(customer.key, gateway.http)
        clients = Clients(gateway.grpc, gateway.http, customer.key)
        host, _, port = gateway.grpc.rpartition(":")

        async def served() -> bool:
            with suppress(grpc.aio.AioRpcError):
                return bool(await clients.tensors())
            return False

        async def alive() -> bool:
            with suppress(httpx.TransportError):
                async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                    return (await client.get(f"{gateway.ops}/healthz")).is_success
            return False

        with files(SHELLS_LIMIT + AT_ONCE), ExitStack() as stack:
            for _ in range(AT_ONCE):
                silent = stack.enter_context(socket.socket())
                silent.setblocking(False)
                silent.connect_ex((host, int(port)))
            await eventually(alive, within_s=WITHIN_S, what="the probe is answered")
            await eventually(served, within_s=WITHIN_S, what="a customer is served")
        await clients.close()
