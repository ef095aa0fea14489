"""KServe v2 over HTTP and gRPC, through all four flavours of tritonclient."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from busbar_runtime.platform import Platform
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness.operator import Customer
from tritonclient.utils import InferenceServerException

A = np.arange(16, dtype=np.int32)
B = np.full(16, 3, dtype=np.int32)
SUM_AND_DIFFERENCE = (A + B).tolist(), (A - B).tolist()


@pytest.fixture
def headers(customer: Customer) -> dict[str, str]:
    return {"authorization": f"Bearer {customer.key}"}


@pytest.fixture
def http_address(platform: Platform) -> str:
    return platform.endpoints["http"].removeprefix("http://")


@pytest.fixture
def grpc_client(platform: Platform) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(platform.endpoints["grpc"]) as client:
        yield client


@pytest.fixture
def http_client(http_address: str) -> Iterator[Any]:
    with triton_http.InferenceServerClient(http_address) as client:
        yield client


def simple_inputs(module: Any, **options: Any) -> list[Any]:
    shape = [1, 16]
    made = [
        module.InferInput("INPUT0", shape, "INT32"),
        module.InferInput("INPUT1", shape, "INT32"),
    ]
    made[0].set_data_from_numpy(A.reshape(shape), **options)
    made[1].set_data_from_numpy(B.reshape(shape), **options)
    return made


def outputs_of(result: Any) -> tuple[list[int], list[int]]:
    return result.as_numpy("OUTPUT0").ravel().tolist(), result.as_numpy("OUTPUT1").ravel().tolist()


def test_tensors_over_grpc(grpc_client: Any, headers: dict[str, str]) -> None:
    result = grpc_client.infer(
        "simple", simple_inputs(triton_grpc), headers=headers, request_id="mine"
    )

    assert outputs_of(result) == SUM_AND_DIFFERENCE
    assert result.get_response().id == "mine"


@pytest.mark.parametrize("module", [triton_grpc, triton_http], ids=["grpc", "http"])
def test_the_largest_elements_come_as_classes(
    grpc_client: Any, http_client: Any, headers: dict[str, str], module: Any
) -> None:
    client = grpc_client if module is triton_grpc else http_client
    output = module.InferRequestedOutput("OUTPUT0", class_count=2)
    result = client.infer("simple", simple_inputs(module), outputs=[output], headers=headers)
    described = client.get_server_metadata(headers=headers)
    extensions = described.extensions if module is triton_grpc else described["extensions"]

    largest = [element.decode().split(":") for element in result.as_numpy("OUTPUT0").ravel()]
    assert [(int(float(value)), int(at)) for value, at in largest] == [(18, 15), (17, 14)]
    assert "classification" in extensions


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_over_http_in_json_and_binary(
    http_client: Any, headers: dict[str, str], binary: bool
) -> None:
    outputs = [
        triton_http.InferRequestedOutput(n, binary_data=binary) for n in ("OUTPUT0", "OUTPUT1")
    ]
    inputs = simple_inputs(triton_http, binary_data=binary)

    result = http_client.infer("simple", inputs, outputs=outputs, headers=headers)

    assert outputs_of(result) == SUM_AND_DIFFERENCE


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_bodies_both_ways(
    http_client: Any, headers: dict[str, str], compression: str
) -> None:
    result = http_client.infer(
        "simple",
        simple_inputs(triton_http),
        headers=headers,
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )

    assert outputs_of(result) == SUM_AND_DIFFERENCE


def test_only_requested_outputs_come_back(http_client: Any, headers: dict[str, str]) -> None:
    outputs = [triton_http.InferRequestedOutput("OUTPUT1")]

    result = http_client.infer(
        "simple", simple_inputs(triton_http), outputs=outputs, headers=headers
    )

    assert [o["name"] for o in result.get_response()["outputs"]] == ["OUTPUT1"]


async def test_both_aio_flavours(
    platform: Platform, http_address: str, headers: dict[str, str]
) -> None:
    async with triton_grpc_aio.InferenceServerClient(platform.endpoints["grpc"]) as client:
        over_grpc = await client.infer("simple", simple_inputs(triton_grpc_aio), headers=headers)
    async with triton_http_aio.InferenceServerClient(http_address) as client:
        over_http = await client.infer("simple", simple_inputs(triton_http_aio), headers=headers)

    assert outputs_of(over_grpc) == SUM_AND_DIFFERENCE
    assert outputs_of(over_http) == SUM_AND_DIFFERENCE


def test_strings_keep_their_bytes(
    grpc_client: Any, http_client: Any, headers: dict[str, str]
) -> None:
    numbers = np.array([str(n).encode() for n in range(16)], dtype=object).reshape(1, 16)
    for module, client in ((triton_grpc, grpc_client), (triton_http, http_client)):
        inputs = [module.InferInput(n, [1, 16], "BYTES") for n in ("INPUT0", "INPUT1")]
        for tensor in inputs:
            tensor.set_data_from_numpy(numbers)

        result = client.infer("simple-string", inputs, headers=headers)

        doubled = [int(value) for value in result.as_numpy("OUTPUT0").ravel()]
        assert doubled == [2 * n for n in range(16)]


def test_metadata_and_config_describe_the_model(
    grpc_client: Any, http_client: Any, headers: dict[str, str]
) -> None:
    over_grpc = grpc_client.get_model_metadata("simple", headers=headers)
    over_http = http_client.get_model_metadata("simple", headers=headers)

    assert over_grpc.name == over_http["name"] == "simple"
    assert [t.name for t in over_grpc.inputs] == [t["name"] for t in over_http["inputs"]]
    assert grpc_client.get_model_config("simple", headers=headers).config.name == "simple"
    assert grpc_client.get_server_metadata(headers=headers).name
    assert http_client.get_server_metadata(headers=headers)["name"]


def test_health_needs_no_key_and_models_do(grpc_client: Any, http_client: Any) -> None:
    assert grpc_client.is_server_live()
    assert grpc_client.is_server_ready()
    assert http_client.is_server_live()
    assert http_client.is_server_ready()
    with pytest.raises(InferenceServerException) as refused:
        grpc_client.get_model_metadata("simple")
    assert "UNAUTHENTICATED" in str(refused.value.status())
    with pytest.raises(InferenceServerException) as refused:
        http_client.get_model_metadata("simple")
    assert refused.value.status() in {"401", 401}


def test_model_readiness(grpc_client: Any, http_client: Any, headers: dict[str, str]) -> None:
    assert grpc_client.is_model_ready("simple", headers=headers)
    assert http_client.is_model_ready("simple", headers=headers)
    assert not http_client.is_model_ready("no-such-model", headers=headers)


def test_a_decoupled_model_streams_many_responses(
    grpc_client: Any, headers: dict[str, str]
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    text = triton_grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"User: hello\nAssistant:"], dtype=object))
    sampling = triton_grpc.InferInput("sampling_parameters", [1], "BYTES")
    sampling.set_data_from_numpy(np.array([b'{"max_tokens": 8, "temperature": 0}'], dtype=object))
    stream = triton_grpc.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.array([True]))

    grpc_client.start_stream(
        callback=partial(lambda q, result, error: q.put((result, error)), answers), headers=headers
    )
    grpc_client.async_stream_infer(
        "tiny-lm", [text, sampling, stream], enable_empty_final_response=True
    )
    received: list[Any] = []
    while True:
        result, error = answers.get(timeout=30)
        assert error is None
        received.append(result)
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    grpc_client.stop_stream()

    texts = [r.as_numpy("text_output") for r in received if r.as_numpy("text_output") is not None]
    assert len(texts) > 1
    assert b"".join(t.ravel()[0] for t in texts)


def test_a_failing_request_does_not_end_the_stream(
    grpc_client: Any, headers: dict[str, str]
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    grpc_client.start_stream(
        callback=partial(lambda q, result, error: q.put((result, error)), answers), headers=headers
    )
    grpc_client.async_stream_infer("no-such-model", simple_inputs(triton_grpc))
    _, error = answers.get(timeout=30)
    grpc_client.async_stream_infer("simple", simple_inputs(triton_grpc))
    result, second_error = answers.get(timeout=30)
    grpc_client.stop_stream()

    assert "no-such-model" in str(error)
    assert second_error is None
    assert outputs_of(result) == SUM_AND_DIFFERENCE


@pytest.mark.parametrize(
    "call",
    [
        lambda c, h: c.load_model("simple", headers=h),
        lambda c, h: c.unload_model("simple", headers=h),
        lambda c, h: c.get_model_repository_index(headers=h),
        lambda c, h: c.register_system_shared_memory("a", "/b", 8, headers=h),
        lambda c, h: c.get_system_shared_memory_status(headers=h),
        lambda c, h: c.update_trace_settings(settings={"trace_rate": "1"}, headers=h),
        lambda c, h: c.update_log_settings(settings={"log_info": False}, headers=h),
    ],
)
def test_what_would_reach_into_the_server_is_refused_with_a_reason(
    grpc_client: Any, http_client: Any, headers: dict[str, str], call: Any
) -> None:
    for client in (grpc_client, http_client):
        with pytest.raises(InferenceServerException, match=r"operator|share") as refused:
            call(client, headers)
        assert str(refused.value.status()) in {"StatusCode.PERMISSION_DENIED", "403"}


def test_standard_health_and_reflection(platform: Platform, customer: Customer) -> None:
    with grpc.insecure_channel(platform.endpoints["grpc"]) as channel:
        health_stub: Any = health_pb2_grpc.HealthStub(channel)
        health = health_stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        metadata = (("authorization", f"Bearer {customer.key}"),)
        answers = stub.ServerReflectionInfo(iter([asked]), timeout=5, metadata=metadata)
        listed = {s.name for s in next(iter(answers)).list_services_response.service}

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert "inference.GRPCInferenceService" in listed
