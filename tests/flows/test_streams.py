"""ModelStreamInfer beside the Triton behind it: the same requests are answered in the same way."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

pb: Any = service_pb2
WITHIN_S = 30.0


def asked(model: str, number: int, /, **inputs: np.ndarray[Any, Any]) -> Any:
    message = pb.ModelInferRequest(model_name=model, id=str(number))
    datatypes = {"float32": "FP32", "int32": "INT32", "uint32": "UINT32"}
    for name, value in inputs.items():
        message.inputs.add(name=name, datatype=datatypes[value.dtype.name], shape=value.shape)
        message.raw_input_contents.append(value.tobytes())
    return message


def slow(number: int, delay_ms: int) -> Any:
    delay = np.array([delay_ms], dtype=np.int32)
    return asked("slow-echo", number, INPUT0=np.ones(1, dtype=np.float32), delay_ms=delay)


def simple(number: int, *, inputs: int = 2) -> Any:
    ones = np.ones((1, 16), dtype=np.int32)
    return asked("simple", number, **{f"INPUT{n}": ones for n in range(inputs)})


def repeated(number: int, *values: int) -> Any:
    delays, wait = np.ones(len(values), dtype=np.uint32), np.zeros(1, dtype=np.uint32)
    return asked("repeat", number, IN=np.array(values, dtype=np.int32), DELAY=delays, WAIT=wait)


PLAIN = [slow(1, 400), simple(2), slow(3, 100), simple(4, inputs=1), slow(5, -1), simple(6)]
DECOUPLED = [repeated(1, 7, 8), repeated(1, 7, -1)]


def triton_below(agent_pid: int) -> str:
    """The address of the Triton that this node agent runs."""
    below = psutil.Process(agent_pid).children(recursive=True)
    [triton] = [one for one in below if "tritonserver" in one.name()]
    [port] = [word for word in triton.cmdline() if word.startswith("--grpc-port=")]
    return f"127.0.0.1:{port.partition('=')[2]}"


def heard(address: str, requests: list[Any], key: str) -> list[tuple[str, bool, bool | None]]:
    """Of each message: whose it is, whether it is an error, and whether it says it is the last."""
    metadata = (("authorization", f"Bearer {key}"),)
    with grpc.insecure_channel(address) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(iter(requests), metadata=metadata, timeout=WITHIN_S)
        return [_gist(answer) for answer in answers]


def _gist(answer: Any) -> tuple[str, bool, bool | None]:
    said = answer.infer_response
    marked = "triton_final_response" in said.parameters
    final = said.parameters["triton_final_response"].bool_param if marked else None
    return said.id, bool(answer.error_message), final


@pytest.mark.parametrize(
    "requests",
    [PLAIN, [slow(number, number % 7) for number in range(60)], *[[one] for one in DECOUPLED]],
    ids=["plain", "sixty", "decoupled", "decoupled-fails"],
)
async def test_a_stream_is_answered_as_triton_answers_it(
    platform: Platform, customer: Customer, requests: list[Any]
) -> None:
    triton = triton_below(platform.endpoints["pids"]["node-agent"])
    direct = await asyncio.to_thread(heard, triton, requests, customer.key)
    through = await asyncio.to_thread(heard, platform.endpoints["grpc"], requests, customer.key)

    assert through == direct


async def test_a_revoked_key_ends_an_open_stream(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    new = await operator.new_key(customer.tenant_id)
    metadata = (("authorization", f"Bearer {new['key']}"),)
    async with grpc.aio.insecure_channel(platform.endpoints["grpc"]) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stream = await eventually(
            lambda: _opened(stub, metadata), within_s=WITHIN_S, what="the key is known"
        )
        await operator.call("billing", "DELETE", f"/admin/v1/keys/{new['key_id']}")
        served, ended = 0, None
        while ended is None:
            try:
                await stream.write(simple(served))
                answer = await stream.read()
                served += bool(answer)
            except grpc.aio.AioRpcError as error:
                ended = error

    assert ended.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "revoked" in (ended.details() or "")


async def _opened(stub: Any, metadata: Any) -> Any:
    """A stream that has answered once; None while its key is not known."""
    stream = stub.ModelStreamInfer(metadata=metadata, timeout=WITHIN_S)
    try:
        await stream.write(simple(0))
        await stream.read()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return None
    return stream
