"""The gRPC edge with the stock clients: health, metadata, refusals, bad input."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from busbar_contracts.billing.v1.keys_pb2 import KEY_SCOPE_READ_USAGE, ApiKey
from busbar_gateway.adapters.grpc.native import Call
from gateway_harness import (
    AUTH,
    KEY,
    Platform,
    eventually,
    fresh_name,
    inference_of,
    pb,
    put_key,
    request,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from pygrpc_native import NativeGrpcFront
from tritonclient.utils import InferenceServerException

SERVICE = "/inference.GRPCInferenceService/"
HEADERS = {"authorization": f"Bearer {KEY}"}
Code = grpc.StatusCode


async def code_of(platform: Platform, method: str, payload: bytes = b"", auth: Any = AUTH) -> Code:
    call = platform.channel.unary_unary(SERVICE + method)
    try:
        await call(payload, timeout=5, metadata=auth)
    except grpc.aio.AioRpcError as error:
        return error.code() if error.details() else Code.UNKNOWN
    return Code.OK


async def test_the_stock_client_works_unchanged(platform: Platform) -> None:
    name, _ = await platform.deploy()
    async with triton.InferenceServerClient(f"127.0.0.1:{platform.port}") as client:
        given = triton.InferInput("IN", [4], "FP32")
        given.set_data_from_numpy(np.arange(4, dtype=np.float32))

        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(name, headers=HEADERS)
        assert not await client.is_model_ready("nothing", headers=HEADERS)
        assert (await client.get_server_metadata(headers=HEADERS)).name == "busbar"
        assert (await client.get_model_metadata(name, headers=HEADERS)).inputs[0].name == "IN"
        assert (await client.get_model_config(name, headers=HEADERS)).config.name == name
        answer = await client.infer(name, [given], headers=HEADERS)
        assert answer.as_numpy("OUT").tolist() == [0, 1, 2, 3]
        with pytest.raises(InferenceServerException, match="no API key"):
            await client.infer(name, [given])


class Front:
    """Takes an answer as pygrpc-native does, and notes what would be voided after a kill now."""

    def __init__(self, platform: Platform, *, takes: bool) -> None:
        self._platform = platform
        self._takes = takes
        self.uncertain: list[bool] = []

    def respond(self, *_: object) -> bool:
        self.uncertain.append(not self._platform.gateway.usage.idle)
        return self._takes

    def fail(self, *_: object) -> None:
        raise AssertionError("the call is over")


@pytest.mark.parametrize("takes", [True, False], ids=["taken", "client-gone"])
async def test_a_charge_stands_before_the_front_has_the_answer(
    platform: Platform, *, takes: bool
) -> None:
    """Its threads write at once, while this one may have to wait for its turn."""
    name, _ = await platform.deploy()
    front = Front(platform, takes=takes)
    call = Call(cast("NativeGrpcFront", front), 1, AUTH, None)
    await inference_of(platform.gateway, platform.serving).model_infer(request(name), call)
    await eventually(lambda: platform.gateway.usage.idle)
    usage = await platform.usage()

    assert front.uncertain == [False]
    assert (len(usage.records), len(usage.voids)) == (1, 0 if takes else 1)


async def test_the_standard_health_service_needs_no_key(platform: Platform) -> None:
    stub: Any = health_pb2_grpc.HealthStub(platform.channel)

    async def serving(service: str) -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    for service in ("", "inference.GRPCInferenceService"):
        await eventually(partial(serving, service))
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=5)
    first = await watch.read()
    watch.cancel()

    assert first.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services_to_who_has_a_key(platform: Platform) -> None:
    def ask(metadata: Any) -> Any:
        question = ServerReflectionRequest(list_services="")
        stub: Any = ServerReflectionStub(platform.channel)  # pyright: ignore[reportArgumentType]
        return stub.ServerReflectionInfo(iter([question]), timeout=5, metadata=metadata)

    answer = await ask(AUTH).read()
    names = {service.name for service in answer.list_services_response.service}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(()).read()

    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert refused.value.code() is Code.UNAUTHENTICATED


METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
OPEN = {"ServerLive", "ServerReady"}


@pytest.mark.parametrize("method", sorted(set(METHODS) - OPEN))
@pytest.mark.parametrize(
    "auth",
    [(), (("authorization", KEY),), (("authorization", "Bearer bb_wrong' OR 1=1"),)],
    ids=["none", "no scheme", "wrong"],
)
async def test_every_method_refuses_without_a_key(
    platform: Platform, method: str, auth: Any
) -> None:
    if method == "ModelStreamInfer":
        call = platform.channel.stream_stream(SERVICE + method)(timeout=5, metadata=auth)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is Code.UNAUTHENTICATED
    else:
        assert await code_of(platform, method, auth=auth) is Code.UNAUTHENTICATED


async def test_two_credentials_are_refused(platform: Platform) -> None:
    name, agent = await platform.deploy()
    twice = (*AUTH, ("accept", "a"), ("authorization", "Bearer bb_another"))
    stream = platform.channel.stream_stream(SERVICE + "ModelStreamInfer")(timeout=5, metadata=twice)
    reflection: Any = ServerReflectionStub(platform.channel)  # pyright: ignore[reportArgumentType]
    question = iter([ServerReflectionRequest(list_services="")])
    listing = reflection.ServerReflectionInfo(question, timeout=5, metadata=twice)
    for call in (stream, listing):
        with pytest.raises(grpc.aio.AioRpcError, match="more than once") as refused:
            await call.read()
        assert refused.value.code() is Code.INVALID_ARGUMENT

    assert await code_of(platform, "ModelInfer", request(name), twice) is Code.INVALID_ARGUMENT
    assert not agent.works


@pytest.mark.parametrize(
    ("compression", "code"),
    [(grpc.Compression.Gzip, Code.OK), (grpc.Compression.Deflate, Code.UNIMPLEMENTED)],
    ids=["gzip", "deflate"],
)
async def test_messages_may_be_compressed_with_gzip(
    platform: Platform, compression: grpc.Compression, code: Code
) -> None:
    name, _ = await platform.deploy()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{platform.port}", compression=compression)
    async with channel:
        answer = channel.unary_unary(f"{SERVICE}ModelInfer")(request(name), metadata=AUTH)

        assert await answer.code() is code
        if code is not Code.OK:
            assert "`deflate` which isn't supported" in (await answer.details() or "")


async def test_a_key_that_is_not_for_serving_calls_no_method(platform: Platform) -> None:
    key = fresh_name("bb_reads-only")
    value = ApiKey(key_id=key, tenant_id="t", scopes=[KEY_SCOPE_READ_USAGE])
    await put_key(platform.provisioner, key, value)
    auth = (("authorization", f"Bearer {key}"),)

    async def known() -> bool:
        return await code_of(platform, "ServerMetadata", auth=auth) is not Code.UNAUTHENTICATED

    await eventually(known)
    for method in sorted(set(METHODS) - OPEN - {"ModelStreamInfer"}):
        assert await code_of(platform, method, auth=auth) is Code.PERMISSION_DENIED
    call = platform.channel.stream_stream(SERVICE + "ModelStreamInfer")(timeout=5, metadata=auth)
    with pytest.raises(grpc.aio.AioRpcError, match="lacks the scope serve") as refused:
        await call.read()
    assert refused.value.code() is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if m.startswith(("Repository", "System", "Cuda", "Trace", "Log"))],
)
async def test_what_belongs_to_the_operator_is_refused(platform: Platform, method: str) -> None:
    assert await code_of(platform, method) is Code.PERMISSION_DENIED


async def test_a_key_sees_only_its_deployments(platform: Platform) -> None:
    shared, _ = await platform.deploy()
    private, _ = await platform.deploy(tenants=["somebody-else"])
    limited = fresh_name("bb_limited")
    value = ApiKey(key_id="key-2", tenant_id="tenant-2", deployments=["other"])
    await put_key(platform.provisioner, limited, value)
    auth = (("authorization", f"Bearer {limited}"),)

    async def known() -> bool:
        return await code_of(platform, "ServerMetadata", auth=auth) is Code.OK

    await eventually(known)
    assert await code_of(platform, "ModelInfer", request(shared)) is Code.OK
    assert await code_of(platform, "ModelInfer", request(private)) is Code.NOT_FOUND
    assert await code_of(platform, "ModelInfer", request(shared), auth) is Code.NOT_FOUND


def raw(**changes: Any) -> bytes:
    """A request with something wrong in it; what each change means is in `_CHANGES`."""
    message = pb.ModelInferRequest.FromString(request("model"))
    for name, value in changes.items():
        change = _CHANGES.get(name)
        if change is None:
            setattr(message, name, value)
        else:
            change(message, value)
    return message.SerializeToString()


def _twice(message: Any, _: Any) -> None:
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])


_CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "datatype": lambda m, value: setattr(m.inputs[0], "datatype", value),
    "name": lambda m, value: setattr(m.inputs[0], "name", value),
    "shape": lambda m, value: operator.setitem(m.inputs[0].shape, slice(None), value),
    "data": lambda m, value: operator.setitem(m.raw_input_contents, slice(None), value),
    "contents": lambda m, value: m.inputs[0].contents.CopyFrom(pb.InferTensorContents(**value)),
    "outputs": lambda m, value: [m.outputs.add(name=output) for output in value],
    "parameters": lambda m, value: setattr(m.parameters[value], "int64_param", 1),
    "tensor_parameters": lambda m, value: setattr(
        m.inputs[0].parameters[value], "string_param", "x"
    ),
    "twice": _twice,
}


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (raw(), Code.OK),
        (raw(data=[], contents={"fp32_contents": [1, 2, 3, float("nan")]}), Code.OK),
        (b"\xff\xff\xff", Code.INVALID_ARGUMENT),
        (b"", Code.NOT_FOUND),
        (raw(model_name="no-such-model"), Code.NOT_FOUND),
        (raw(model_name="x" * 5000), Code.NOT_FOUND),
        (raw(model_version="9"), Code.NOT_FOUND),
        (raw(datatype="INT32"), Code.INVALID_ARGUMENT),
        (raw(datatype="nonsense"), Code.INVALID_ARGUMENT),
        (raw(name="OTHER"), Code.INVALID_ARGUMENT),
        (raw(shape=[2, 2]), Code.INVALID_ARGUMENT),
        (raw(shape=[-4]), Code.INVALID_ARGUMENT),
        (raw(shape=[2**62, 4]), Code.INVALID_ARGUMENT),
        (raw(data=[b"123"]), Code.INVALID_ARGUMENT),
        (raw(data=[b"x" * 16, b"y"]), Code.INVALID_ARGUMENT),
        (raw(data=[]), Code.INVALID_ARGUMENT),
        (raw(contents={"fp32_contents": [1, 2, 3, 4]}), Code.INVALID_ARGUMENT),
        (raw(data=[], contents={"fp32_contents": [1]}), Code.INVALID_ARGUMENT),
        (raw(data=[], contents={"int_contents": [1, 2, 3, 4]}), Code.INVALID_ARGUMENT),
        (raw(twice=True), Code.INVALID_ARGUMENT),
        (raw(outputs=["NOPE"]), Code.INVALID_ARGUMENT),
        (raw(outputs=["OUT", "OUT"]), Code.INVALID_ARGUMENT),
        (raw(parameters="sequence_id"), Code.INVALID_ARGUMENT),
        (raw(tensor_parameters="shared_memory_region"), Code.INVALID_ARGUMENT),
        (raw(data=[b"x" * 5000]), Code.RESOURCE_EXHAUSTED),
        (raw(data=[b"x" * 9_000_000]), Code.RESOURCE_EXHAUSTED),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else "",
)
async def test_bad_input_is_told_apart_and_never_dispatched(
    platform: Platform, payload: bytes, code: Code
) -> None:
    name, agent = await platform.deploy()
    own = payload.replace(b"\x0a\x05model", b"\x0a" + bytes([len(name)]) + name.encode(), 1)

    assert await code_of(platform, "ModelInfer", own) is code

    assert bool(agent.works) == (code is Code.OK)


async def test_an_idempotency_key_that_would_be_ignored_is_refused(platform: Platform) -> None:
    name, _ = await platform.deploy()
    keyed = (*AUTH, ("idempotency-key", "foo"))
    infer = platform.channel.unary_unary(SERVICE + "ModelInfer")
    with pytest.raises(grpc.aio.AioRpcError, match="charged again") as refused:
        await infer(request(name), timeout=5, metadata=keyed)
    stream = platform.channel.stream_stream(SERVICE + "ModelStreamInfer")
    with pytest.raises(grpc.aio.AioRpcError, match="charged again") as refused_stream:
        async for _ in stream(iter([request(name)]), timeout=5, metadata=keyed):
            pass

    assert refused.value.code() is refused_stream.value.code() is Code.INVALID_ARGUMENT


async def test_a_decoupled_model_is_not_answered_by_model_infer(platform: Platform) -> None:
    name, _ = await platform.deploy(decoupled=True)

    assert await code_of(platform, "ModelInfer", request(name)) is Code.UNIMPLEMENTED


async def test_huge_metadata_and_messages_do_not_hurt(platform: Platform) -> None:
    name, _ = await platform.deploy()
    for metadata in ([("x-big", "y" * 100_000)], [(f"x-{n}", "y") for n in range(10_000)]):
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{platform.port}", options=[("grpc.max_metadata_size", 10**7)]
        ) as channel:
            call = channel.unary_unary(f"{SERVICE}ModelInfer")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(request(name), timeout=5, metadata=[*AUTH, *metadata])
    stream = platform.stream()
    await stream.write(b"x" * 9_000_000)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.read()

    assert refused.value.code() is Code.RESOURCE_EXHAUSTED
    await platform.infer(request(name))


async def test_the_request_id_comes_back(platform: Platform) -> None:
    name, agent = await platform.deploy()
    call = platform.channel.unary_unary(f"{SERVICE}ModelInfer")(request(name), metadata=AUTH)
    await call
    trailing = dict(await call.trailing_metadata())

    assert trailing["x-request-id"] == f"req_{agent.works[0].request_id.hex()}"
