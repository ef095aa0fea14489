"""A stream stays open for as long as it likes; the key it was opened with need not stay valid."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any

import grpc
import pytest
from busbar_contracts.billing.v1.keys_pb2 import KEY_SCOPE_READ_USAGE, ApiKey
from busbar_contracts.node.v1 import work_pb2
from busbar_errors import BusbarError
from busbar_messaging import topology
from gateway_harness import (
    SECRET,
    Platform,
    Say,
    echo,
    eventually,
    fresh_name,
    pb,
    put_key,
    request,
    tenant_with,
)

Code = grpc.StatusCode
SERVES = "/inference.GRPCInferenceService/ModelStreamInfer"


async def revoke(platform: Platform, auth: Any) -> None:
    key = auth[0][1].removeprefix("Bearer ")
    bucket = await platform.provisioner.jetstream().key_value(topology.KEYS.name)
    await bucket.delete(hmac.new(SECRET.encode(), key.encode(), "sha256").hexdigest())
    await eventually(lambda: refused(platform, auth))


def refused(platform: Platform, auth: Any) -> bool:
    try:
        platform.gateway.keys.authenticate(auth[0][1])
    except BusbarError:
        return True
    return False


async def answered(stream: Any) -> Any:
    return pb.ModelStreamInferResponse.FromString(await stream.read())


async def test_a_message_after_its_key_was_revoked_ends_the_stream_and_is_not_charged(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()
    _, auth = await tenant_with(platform, 10**9)
    stream = platform.channel.stream_stream(SERVES)(timeout=10, metadata=auth)
    await stream.write(request(name))
    first = await answered(stream)
    await revoke(platform, auth)
    await stream.write(request(name))

    with pytest.raises(grpc.aio.AioRpcError, match="revoked") as ended:
        await stream.read()

    assert not first.error_message
    assert ended.value.code() is Code.UNAUTHENTICATED
    assert "x-request-id" in dict(ended.value.trailing_metadata() or ())
    assert len(agent.works) == 1
    assert len((await platform.usage()).charged) == 1


async def test_what_was_under_way_when_a_key_was_revoked_is_answered_and_charged(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()
    _, auth = await tenant_with(platform, 10**9)
    go_on = asyncio.Event()

    async def when_told(work: work_pb2.InferenceWork, say: Say) -> None:
        await go_on.wait()
        await echo(work, say)

    agent.behaviour = when_told
    stream = platform.channel.stream_stream(SERVES)(timeout=10, metadata=auth)
    await stream.write(request(name))
    await eventually(lambda: agent.works)
    await revoke(platform, auth)
    await stream.write(request(name))
    go_on.set()
    first = await answered(stream)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()

    assert not first.error_message
    assert ended.value.code() is Code.UNAUTHENTICATED
    assert len(agent.works) == 1
    assert len((await platform.usage()).charged) == 1


@pytest.mark.parametrize(
    ("becomes", "code", "reason"),
    [
        ({"expires_unix_ms": 1}, Code.UNAUTHENTICATED, "expired"),
        ({"scopes": [KEY_SCOPE_READ_USAGE]}, Code.PERMISSION_DENIED, "scope"),
    ],
    ids=["expired", "not-for-serving"],
)
async def test_a_message_is_judged_by_what_its_key_is_now(
    platform: Platform, becomes: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    name, agent = await platform.deploy()
    tenant_id, auth = await tenant_with(platform, 10**9)
    stream = platform.channel.stream_stream(SERVES)(timeout=10, metadata=auth)
    await stream.write(request(name))
    await answered(stream)
    key = auth[0][1].removeprefix("Bearer ")
    await put_key(platform.provisioner, key, ApiKey(key_id="key-2", tenant_id=tenant_id, **becomes))
    await eventually(lambda: refused(platform, auth))
    await stream.write(request(name))

    with pytest.raises(grpc.aio.AioRpcError, match=reason) as ended:
        await stream.read()

    assert ended.value.code() is code
    assert len(agent.works) == 1


async def test_a_key_expires_while_its_stream_is_open(platform: Platform) -> None:
    name, agent = await platform.deploy()
    key, soon_ms = fresh_name("bb"), int(time.time() * 1000) + 1500
    value = ApiKey(key_id="key-3", tenant_id=fresh_name("tenant"), expires_unix_ms=soon_ms)
    platform.billing.balances[value.tenant_id] = 10**9
    await put_key(platform.provisioner, key, value)
    auth = (("authorization", f"Bearer {key}"),)
    await eventually(lambda: not refused(platform, auth))
    stream = platform.channel.stream_stream(SERVES)(timeout=10, metadata=auth)
    await stream.write(request(name))
    first = await answered(stream)
    await eventually(lambda: refused(platform, auth))
    await stream.write(request(name))

    with pytest.raises(grpc.aio.AioRpcError, match="expired") as ended:
        await stream.read()

    assert not first.error_message
    assert ended.value.code() is Code.UNAUTHENTICATED
    assert len(agent.works) == 1
