"""Many keys and tenants: a gateway knows them soon after it starts, and each change at once."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import time
from collections.abc import AsyncIterator

import pytest
from busbar_contracts.billing.v1.keys_pb2 import ApiKey
from busbar_contracts.billing.v1.tenants_pb2 import TenantPolicy
from busbar_gateway.adapters.key_ring import KeyRing
from busbar_gateway.adapters.policy_table import PolicyTable
from busbar_gateway.domain.failures import Unauthenticated
from busbar_messaging import topology
from busbar_messaging.connection import BusSettings, close, connect
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import bus_settings, eventually
from harness.polling import quickest_s
from nats.aio.client import Client

KEYS, TENANTS, CHANGES = 1_000, 200, 20
AT_ONCE = 64
START_S, CHANGE_S = 5.0, 1.0
HMAC_SECRET = b"secret of many keys"


def secret_of(number: int) -> str:
    return f"bb_many-{number}"


def name_of(number: int) -> str:
    return hmac.digest(HMAC_SECRET, secret_of(number).encode(), "sha256").hex()


def entry_of(number: int) -> bytes:
    return ApiKey(
        tenant_id=f"many-{number % TENANTS}",
        key_id=f"key_{number:032x}",
        deployments=["a-model", "another-model"],
    ).SerializeToString()


@pytest.fixture
async def billing(nats_server: NatsServer, provisioner: Client) -> AsyncIterator[Client]:
    """Who writes keys and policies. They stay, under names that no other test has."""
    del provisioner  # it made the buckets
    client = await connect(BusSettings(**bus_settings(nats_server, "billing")), "test")
    await write(client, {name_of(one): entry_of(one) for one in range(KEYS)}, policies(limit=7))
    yield client
    await close(client)


def policies(limit: int) -> dict[str, bytes]:
    policy = TenantPolicy(requests_per_minute=limit, weight=2).SerializeToString()
    return {f"many-{one}": policy for one in range(TENANTS)}


async def write(client: Client, keys: dict[str, bytes], tenants: dict[str, bytes]) -> None:
    room = asyncio.Semaphore(AT_ONCE)
    jetstream = client.jetstream(timeout=10)

    async def put(bucket: str, key: str, value: bytes) -> None:
        async with room:
            await jetstream.publish(f"$KV.{bucket}.{key}", value)

    entries = [(topology.TENANTS.name, *one) for one in tenants.items()]
    entries += [(topology.KEYS.name, *one) for one in keys.items()]
    await asyncio.gather(*(put(*one) for one in entries))


async def test_thousands_are_known_at_once_and_a_change_does_not_wait_for_others(
    nats_server: NatsServer, billing: Client
) -> None:
    gateway = await connect(BusSettings(**bus_settings(nats_server, "gateway")), "test")
    ring, table = KeyRing(HMAC_SECRET), PolicyTable()
    began = time.monotonic()
    following = [
        asyncio.create_task(ring.follow(gateway)),
        asyncio.create_task(table.follow(gateway)),
    ]
    await eventually(lambda: ring.read_once and table.read_once)
    known_after_s = time.monotonic() - began
    callers = [ring.authenticate(f"Bearer {secret_of(one)}") for one in range(KEYS)]
    limits = {table.current(f"many-{one}").requests_per_minute for one in range(TENANTS)}

    # A plan that all have changes meanwhile.
    storm = asyncio.create_task(write(billing, {}, policies(limit=9)))
    numbers = itertools.count(KEYS)

    async def until_known() -> float:
        number = next(numbers)
        await write(billing, {name_of(number): entry_of(number)}, {})
        written = time.monotonic()
        await eventually(lambda: is_known(ring, number))
        return time.monotonic() - written

    waits_s = [await quickest_s(until_known, under_s=CHANGE_S) for _ in range(CHANGES)]
    await storm
    await eventually(
        lambda: {table.current(f"many-{one}").requests_per_minute for one in range(TENANTS)} == {9}
    )
    for task in following:
        task.cancel()
    await asyncio.wait(following)
    await close(gateway)

    assert known_after_s < START_S
    assert [caller.tenant_id for caller in callers[:3]] == ["many-0", "many-1", "many-2"]
    assert limits == {7}
    assert max(waits_s) < CHANGE_S


def is_known(ring: KeyRing, number: int) -> bool:
    try:
        ring.authenticate(f"Bearer {secret_of(number)}")
    except Unauthenticated:
        return False
    return True
