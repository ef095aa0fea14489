"""ModelInfer over our own HTTP/2 against a real Triton."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest
from busbar_node_agent.adapters.triton_rpc import TritonRpc
from busbar_node_agent.usecases.lane import TritonRefused
from busbar_runtime.home import Home
from busbar_runtime.triton import ensure_triton
from busbar_runtime.triton_probe import TritonServer, started
from harness.model_threads import model_threads
from tritonclient.grpc import service_pb2

from .node_bench import Tensor, payload, poll, slow_echo

MIB = 1024 * 1024
ECHO = [float(each) for each in range(16)]


@pytest.fixture(scope="module")
def triton(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    home = tmp_path_factory.mktemp("triton")
    names = ("echo-fp32", "slow-echo")
    for name in names:
        shutil.copytree(demo_models / name, home / "models" / name)
    command = ensure_triton(Home.of().cache).argv
    with started(command, repository=home / "models", log=home / "triton.log") as server:
        for name in names:
            server.load(name)
        yield server


@pytest.fixture
async def rpc(triton: TritonServer) -> AsyncIterator[TritonRpc]:
    rpc = TritonRpc(triton.grpc_address)
    yield rpc
    await rpc.close()


@pytest.fixture
async def official(triton: TritonServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(triton.grpc_address) as channel:
        yield channel


def _floats(answer: bytes) -> tuple[float, ...]:
    raw = service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0]
    return struct.unpack(f"<{len(raw) // 4}f", raw)


async def test_two_hundred_callers_at_once_each_get_their_own_numbers(rpc: TritonRpc) -> None:
    rows = [[caller + each / 16 for each in range(16)] for caller in range(200)]
    requests = [payload("echo-fp32", {"INPUT0": Tensor("FP32", row)}) for row in rows]

    answers = await asyncio.gather(*(rpc.infer(each, 30.0, "") for each in requests))

    assert [list(_floats(each)) for each in answers] == rows


async def test_four_mebibytes_go_there_and_back(rpc: TritonRpc) -> None:
    raw = struct.pack("<f", 1.25) * (MIB - 3) + os.urandom(3) + b"\x00" + bytes(8)
    request = service_pb2.ModelInferRequest.FromString(slow_echo())
    request.inputs[0].shape[0] = len(raw) // 4
    request.raw_input_contents[0] = raw
    data = request.SerializeToString()

    answers = await asyncio.gather(*(rpc.infer(data, 30.0, "") for _ in range(3)))

    responses = [service_pb2.ModelInferResponse.FromString(each) for each in answers]
    assert all(each.raw_output_contents[0] == raw for each in responses)


@pytest.mark.parametrize(
    ("request_bytes", "code", "reason"),
    [
        (payload("nobody", {"INPUT0": Tensor("FP32", ECHO)}), "NOT_FOUND|UNAVAILABLE", "nobody"),
        (payload("echo-fp32", {"INPUT0": Tensor("FP32", ECHO[:3])}), "INVALID_ARGUMENT", "shape"),
        (payload("echo-fp32", {"WRONG": Tensor("FP32", ECHO)}), "INVALID_ARGUMENT", "WRONG"),
        (slow_echo(fault="invalid_arg"), "INVALID_ARGUMENT", "failed as asked"),
        (slow_echo(fault="internal"), "INTERNAL", "failed as asked"),
        (b"\xff not a protobuf", "INTERNAL", "parse"),
    ],
    ids=["unknown model", "shape", "unknown input", "the model's refusal", "a bug", "no protobuf"],
)
async def test_a_refusal_is_the_one_that_grpc_reports(
    rpc: TritonRpc, official: grpc.aio.Channel, request_bytes: bytes, code: str, reason: str
) -> None:
    model_infer = official.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    with pytest.raises(TritonRefused) as refused:
        await rpc.infer(request_bytes, 30.0, "")
    call = model_infer(request_bytes, timeout=30.0)

    assert refused.value.code in code.split("|")
    assert reason in refused.value.reason
    assert refused.value.code == (await call.code()).name
    assert refused.value.reason == await call.details()


async def test_giving_up_reaches_the_model(rpc: TritonRpc, triton: TritonServer) -> None:
    idle = model_threads(triton.pid, "slow-echo")
    abandoned = asyncio.create_task(rpc.infer(slow_echo(delay_ms=60_000), 90.0, ""))

    async def at_it() -> int:
        return model_threads(triton.pid, "slow-echo") - idle

    await poll(at_it, 10.0)
    with pytest.raises(TritonRefused) as refused:
        await rpc.infer(slow_echo(delay_ms=60_000), 0.3, "")
    abandoned.cancel()

    async def both_ended() -> bool:
        return await at_it() == 0

    await poll(both_ended, 10.0)  # of the 60 s that they were to take
    assert refused.value.code == "DEADLINE_EXCEEDED"
    assert _floats(await rpc.infer(slow_echo(), 10.0, "")) == (1.5, 2.5)
