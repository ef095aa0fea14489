"""What the gateway refuses over gRPC says which request it is, for whoever asks about it."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest
from gateway_harness import AUTH, Platform, pb, request
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

SERVICE = "/inference.GRPCInferenceService/"
REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
KEYED = (*AUTH, ("idempotency-key", "foo"))
Code = grpc.StatusCode


def named(metadata: Any) -> bool:
    [request_id] = [value for name, value in metadata or () if name == "x-request-id"]
    return REQUEST_ID.fullmatch(request_id) is not None


@pytest.mark.parametrize(
    ("method", "payload", "metadata", "code"),
    [
        ("ModelInfer", b"", (), Code.UNAUTHENTICATED),
        ("ModelInfer", request("no-such-model"), AUTH, Code.NOT_FOUND),
        ("ModelInfer", b"x" * 9_000_000, AUTH, Code.RESOURCE_EXHAUSTED),
        ("ServerMetadata", b"", (), Code.UNAUTHENTICATED),
        ("ModelConfig", b"x" * 9_000_000, AUTH, Code.RESOURCE_EXHAUSTED),
        ("RepositoryModelLoad", b"", AUTH, Code.PERMISSION_DENIED),
    ],
)
async def test_of_a_call(
    platform: Platform, method: str, payload: bytes, metadata: Any, code: Code
) -> None:
    call = platform.channel.unary_unary(SERVICE + method)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(payload, timeout=5, metadata=metadata)

    assert refused.value.code() is code
    assert named(refused.value.trailing_metadata())


@pytest.mark.parametrize(
    ("metadata", "code"),
    [((), Code.UNAUTHENTICATED), (KEYED, Code.INVALID_ARGUMENT)],
    ids=["no key", "idempotency key"],
)
async def test_of_a_stream(platform: Platform, metadata: Any, code: Code) -> None:
    stream = platform.channel.stream_stream(SERVICE + "ModelStreamInfer")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream(timeout=5, metadata=metadata).read()

    assert refused.value.code() is code
    assert named(refused.value.trailing_metadata())


async def test_of_reflection(platform: Platform) -> None:
    stub: Any = ServerReflectionStub(platform.channel)  # pyright: ignore[reportArgumentType]
    question = iter([ServerReflectionRequest(list_services="")])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ServerReflectionInfo(question, timeout=5).read()

    assert refused.value.code() is Code.UNAUTHENTICATED
    assert named(refused.value.trailing_metadata())


async def test_of_what_is_no_refusal_too(platform: Platform) -> None:
    call = platform.channel.unary_unary(SERVICE + "ServerMetadata")(b"", metadata=AUTH)
    answer = pb.ServerMetadataResponse.FromString(await call)

    assert answer.name == "busbar"
    assert named(await call.trailing_metadata())
