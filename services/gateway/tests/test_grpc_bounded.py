"""A gateway whose unary gRPC methods are on grpcio: what is different, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.metrics import Metrics
from busbar_runtime.pytest_plugin import NatsServer
from gateway_harness import (
    AUTH,
    KEY,
    Platform,
    Say,
    a_gateway,
    echo,
    eventually,
    gateway_settings,
    grpc_edge,
    pb,
    request,
)
from nats.aio.client import Client

SERVICE = "/inference.GRPCInferenceService/"
INFLATED_BYTES = 64_000_000
Code = grpc.StatusCode


@pytest.fixture
async def platform(
    nats_server: NatsServer, provisioner: Client, keys: None, metrics: Metrics, tmp_path: Path
) -> AsyncIterator[Platform]:
    settings = gateway_settings(nats_server, tmp_path, grpc_bounded=True)
    async with a_gateway(nats_server, provisioner, metrics, settings) as platform:
        yield platform


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
async def test_the_stock_client_may_compress(platform: Platform, algorithm: str | None) -> None:
    name, _ = await platform.deploy()
    headers = {"authorization": f"Bearer {KEY}"}
    given = triton.InferInput("IN", [4], "FP32")
    given.set_data_from_numpy(np.arange(4, dtype=np.float32))
    async with triton.InferenceServerClient(f"127.0.0.1:{platform.port}") as client:
        answer = await client.infer(name, [given], headers=headers, compression_algorithm=algorithm)

    assert answer.as_numpy("OUT").tolist() == [0, 1, 2, 3]
    assert len((await platform.usage()).charged) == 1


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_message_is_inflated_no_further_than_it_is_taken(
    platform: Platform, compression: grpc.Compression
) -> None:
    options = [("grpc.max_send_message_length", -1)]
    address = f"127.0.0.1:{platform.port}"
    async with grpc.aio.insecure_channel(address, options, compression) as channel:
        call = channel.unary_unary(f"{SERVICE}ModelInfer")(bytes(INFLATED_BYTES), timeout=30)

        assert await call.code() is Code.RESOURCE_EXHAUSTED
        assert await call.details() == "Decompressed message larger than max"


@pytest.mark.parametrize(
    ("method", "payload", "metadata", "code"),
    [
        ("ModelInfer", b"", (), Code.UNAUTHENTICATED),
        ("ModelInfer", request("no-such-model"), AUTH, Code.NOT_FOUND),
        ("ServerMetadata", b"\xff", AUTH, Code.INVALID_ARGUMENT),
        ("RepositoryModelLoad", b"", AUTH, Code.PERMISSION_DENIED),
    ],
)
async def test_a_refusal_says_why_and_names_the_request(
    platform: Platform, method: str, payload: bytes, metadata: Any, code: Code
) -> None:
    call = platform.channel.unary_unary(SERVICE + method)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(payload, timeout=5, metadata=metadata)

    assert refused.value.code() is code
    assert refused.value.details()
    assert "x-request-id" in dict(refused.value.trailing_metadata() or ())


async def test_a_customer_who_leaves_is_not_charged(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def for_ever(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(started=work_pb2.WorkStarted())

    agent.behaviour = for_ever
    call = asyncio.create_task(platform.infer(request(name)))
    pending = platform.gateway.dispatcher.pending
    await eventually(lambda: any(one.attempts.node for one in pending.values()))
    call.cancel()
    await eventually(lambda: agent.last_is_cancelled)

    assert not (await platform.usage()).charged


async def test_a_call_in_hand_is_answered_before_the_port_closes(platform: Platform) -> None:
    name, agent = await platform.deploy()
    leaves = asyncio.Event()

    async def answer_late(work: work_pb2.InferenceWork, say: Say) -> None:
        await leaves.wait()
        await echo(work, say)

    async def leave() -> None:
        await eventually(lambda: agent.works)
        asyncio.get_running_loop().call_later(0.3, leaves.set)

    agent.behaviour = answer_late
    edge = grpc_edge(platform.gateway, platform.serving, grace_s=10, bounded=True)
    async with edge as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        infer: Any = channel.unary_unary(f"{SERVICE}ModelInfer")
        call = asyncio.ensure_future(infer(request(name), timeout=20, metadata=AUTH))
        await leave()
    answered = pb.ModelInferResponse.FromString(await call)
    await channel.close()

    assert answered.model_name == name
