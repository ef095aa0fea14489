"""KServe v2 over HTTP through Triton's own clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.full((1, 16), 3, dtype=np.int32)


@pytest.fixture
def client(edge: Any) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(edge.address) as client:
        yield client


@pytest.fixture
def auth(key: str) -> dict[str, str]:
    # tritonclient adds its own headers to the dictionary that it is given
    return {"Authorization": f"Bearer {key}"}


def output(result: triton.InferResult, name: str) -> Any:
    array = result.as_numpy(name)
    assert array is not None
    return array


def given(name: str, array: Any, datatype: str, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_health_needs_no_key(client: triton.InferenceServerClient, edge: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()

    edge.not_ready.append("the bus is away")
    assert not client.is_server_ready()
    assert client.is_server_live()


def test_metadata_is_tritons(client: triton.InferenceServerClient, auth: dict[str, str]) -> None:
    assert client.get_server_metadata(auth)["name"] == "busbar"
    assert "binary_tensor_data" in client.get_server_metadata(auth)["extensions"]

    metadata = client.get_model_metadata("simple", headers=auth)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
    assert client.get_model_metadata("simple", "1", headers=auth) == metadata
    config = client.get_model_config("simple", headers=auth)
    assert config["max_batch_size"] == 8
    assert config["input"][0]["dims"] == [-1, 16]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    policies = config["dynamic_batching"]["priority_queue_policy"]
    assert policies["1"]["default_timeout_microseconds"] == 7


def test_readiness_is_the_deployments(
    client: triton.InferenceServerClient, auth: dict[str, str]
) -> None:
    assert client.is_model_ready("simple", headers=auth)
    assert client.is_model_ready("simple", "1", headers=auth)
    assert not client.is_model_ready("absent", headers=auth)
    assert not client.is_model_ready("nothing", headers=auth)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_go_in_and_out_in_either_form(
    client: triton.InferenceServerClient,
    auth: dict[str, str],
    edge: Any,
    binary_in: bool,
    binary_out: bool,
) -> None:
    result = client.infer(
        "simple",
        [
            given("INPUT0", A, "INT32", binary=binary_in),
            given("INPUT1", B, "INT32", binary=binary_in),
        ],
        outputs=[triton.InferRequestedOutput("OUTPUT0", binary_data=binary_out)],
        request_id="mine",
        headers=auth,
    )

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)
    assert result.as_numpy("OUTPUT1") is None
    assert result.get_response()["id"] == "mine"
    assert "binary_data_size" in str(result.get_output("OUTPUT0")) or not binary_out
    call = edge.serving.calls[-1]
    assert call.api == "kserve.http.infer"
    assert edge.serving.ended[call.request_id.hex()] == "charged"


def test_outputs_that_are_not_named_all_come_as_binary(
    client: triton.InferenceServerClient, auth: dict[str, str]
) -> None:
    inputs = [given("INPUT0", A, "INT32"), given("INPUT1", B, "INT32", binary=False)]
    result = client.infer("simple", inputs, model_version="1", headers=auth)

    assert output(result, "OUTPUT0").tolist() == (A + B).tolist()
    assert output(result, "OUTPUT1").tolist() == (A - B).tolist()


def test_one_output_binary_and_one_as_json(
    client: triton.InferenceServerClient, auth: dict[str, str]
) -> None:
    result = client.infer(
        "simple",
        [given("INPUT0", A, "INT32"), given("INPUT1", B, "INT32")],
        outputs=[
            triton.InferRequestedOutput("OUTPUT0", binary_data=False),
            triton.InferRequestedOutput("OUTPUT1", binary_data=True),
        ],
        headers=auth,
    )

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), A - B)
    assert ["data" in entry for entry in result.get_response()["outputs"]] == [True, False]


ECHOES: list[tuple[str, Any]] = [
    ("FP32", np.array([0.1, -1e38, 3.0], np.float32)),
    ("FP64", np.array([0.1, -1e300], np.float64)),
    ("BOOL", np.array([True, False])),
    ("UINT8", np.array([0, 255], np.uint8)),
    ("INT64", np.array([-(2**63), 2**63 - 1], np.int64)),
    ("UINT64", np.array([0, 2**64 - 1], np.uint64)),
    ("BYTES", np.array([b"", "grüße €".encode()], object)),
]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("datatype", "array"), ECHOES, ids=[case[0] for case in ECHOES])
def test_every_datatype_survives(
    client: triton.InferenceServerClient,
    auth: dict[str, str],
    datatype: str,
    array: Any,
    binary: bool,
) -> None:
    result = client.infer(
        f"echo-{datatype.lower()}",
        [given("INPUT0", array, datatype, binary=binary)],
        outputs=[triton.InferRequestedOutput("OUTPUT0", binary_data=binary)],
        headers=auth,
    )
    got = output(result, "OUTPUT0")
    if datatype == "BYTES" and not binary:
        got = np.array([text.encode() for text in got], object)

    assert got.dtype == array.dtype
    assert got.tolist() == array.tolist()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_travel_as_binary_only(
    client: triton.InferenceServerClient, auth: dict[str, str], edge: Any, kind: Any, value: float
) -> None:
    array = np.array([0.5, value], kind)
    datatype = f"FP{array.itemsize * 8}"
    model = f"echo-{datatype.lower()}"
    result = client.infer(model, [given("INPUT0", array, datatype)], headers=auth)

    assert output(result, "OUTPUT0").tobytes() == array.tobytes()
    with pytest.raises(InferenceServerException, match=r"'OUTPUT0' .* ask for binary") as refusal:
        client.infer(
            model,
            [given("INPUT0", array, datatype)],
            outputs=[triton.InferRequestedOutput("OUTPUT0", binary_data=False)],
            headers=auth,
        )
    assert refusal.value.status() == "400"
    assert edge.serving.ended[edge.serving.calls[-1].request_id.hex()] == "taken back"


@pytest.mark.parametrize(("datatype", "kind"), [("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_half_precision_travels_as_binary_only(
    client: triton.InferenceServerClient, auth: dict[str, str], edge: Any, datatype: str, kind: Any
) -> None:
    array = np.array([1.5, -2], kind)
    model = f"echo-{datatype.lower()}"
    result = client.infer(model, [given("INPUT0", array, datatype)], headers=auth)

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)
    with pytest.raises(InferenceServerException, match="no JSON form"):
        client.infer(
            model,
            [given("INPUT0", array, datatype)],
            outputs=[triton.InferRequestedOutput("OUTPUT0", binary_data=False)],
            headers=auth,
        )
    assert edge.serving.ended[edge.serving.calls[-1].request_id.hex()] == "taken back"


def test_bytes_that_are_no_text_come_as_binary_only(
    client: triton.InferenceServerClient, auth: dict[str, str]
) -> None:
    array = np.array([b"\xff\x00"], object)
    result = client.infer("echo-bytes", [given("INPUT0", array, "BYTES")], headers=auth)

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)
    with pytest.raises(InferenceServerException, match="UTF-8"):
        client.infer(
            "echo-bytes",
            [given("INPUT0", array, "BYTES")],
            outputs=[triton.InferRequestedOutput("OUTPUT0", binary_data=False)],
            headers=auth,
        )


@pytest.mark.parametrize("binary", [True, False])
def test_empty_tensors_are_tensors(
    client: triton.InferenceServerClient, auth: dict[str, str], binary: bool
) -> None:
    array = np.array([], np.float32)
    inputs = [given("INPUT0", array, "FP32", binary=binary)]

    assert output(client.infer("echo-fp32", inputs, headers=auth), "OUTPUT0").size == 0


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("request_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_encoding", [None, "gzip", "deflate"])
def test_bodies_may_be_compressed(
    client: triton.InferenceServerClient,
    auth: dict[str, str],
    request_encoding: str | None,
    response_encoding: str | None,
    binary: bool,
) -> None:
    array = np.arange(20_000, dtype=np.float32)
    result = client.infer(
        "echo-fp32",
        [given("INPUT0", array, "FP32", binary=binary)],
        outputs=[triton.InferRequestedOutput("OUTPUT0", binary_data=binary)],
        headers=auth,
        request_compression_algorithm=request_encoding,
        response_compression_algorithm=response_encoding,
    )

    assert output(result, "OUTPUT0").tobytes() == array.tobytes()


def test_the_asynchronous_clients_work(edge: Any, key: str) -> None:
    async def talk() -> tuple[Any, Any]:
        headers = {"Authorization": f"Bearer {key}"}
        async with triton_aio.InferenceServerClient(edge.address) as client:
            assert await client.is_model_ready("simple", headers=headers)
            inputs = [given("INPUT0", A, "INT32"), given("INPUT1", B, "INT32")]
            result = await client.infer("simple", inputs, headers=headers)
            large = np.arange(20_000, dtype=np.float32)
            echoed = await client.infer(
                "echo-fp32",
                [given("INPUT0", large, "FP32")],
                headers=headers,
                response_compression_algorithm="gzip",
            )
            np.testing.assert_array_equal(echoed.as_numpy("OUTPUT0"), large)
            return result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1")

    total, difference = asyncio.run(talk())

    np.testing.assert_array_equal(total, A + B)
    np.testing.assert_array_equal(difference, A - B)


def test_the_threaded_client_works(client: triton.InferenceServerClient, key: str) -> None:
    inputs = [given("INPUT0", A, "INT32"), given("INPUT1", B, "INT32")]
    pending = [
        client.async_infer("simple", inputs, headers={"Authorization": f"Bearer {key}"})
        for _ in range(4)
    ]

    answers = [output(request.get_result(), "OUTPUT0").tolist() for request in pending]
    assert answers == [(A + B).tolist()] * 4


Control = Callable[[triton.InferenceServerClient, dict[str, str]], Any]
CONTROL: list[tuple[str, Control]] = [
    ("deployed by the operator", lambda c, h: c.load_model("simple", headers=h)),
    ("deployed by the operator", lambda c, h: c.unload_model("simple", headers=h)),
    ("deployed by the operator", lambda c, h: c.get_model_repository_index(headers=h)),
    (
        "send the data in the request",
        lambda c, h: c.register_system_shared_memory("r", "/key", 64, headers=h),
    ),
    ("send the data in the request", lambda c, h: c.unregister_system_shared_memory(headers=h)),
    (
        "send the data in the request",
        lambda c, h: c.unregister_system_shared_memory("r", headers=h),
    ),
    ("send the data in the request", lambda c, h: c.get_system_shared_memory_status(headers=h)),
    ("send the data in the request", lambda c, h: c.get_cuda_shared_memory_status("r", headers=h)),
    (
        "send the data in the request",
        lambda c, h: c.register_cuda_shared_memory("r", b"handle", 0, 64, headers=h),
    ),
    ("send the data in the request", lambda c, h: c.unregister_cuda_shared_memory(headers=h)),
    ("trace settings belong to the operator", lambda c, h: c.get_trace_settings(headers=h)),
    (
        "trace settings belong to the operator",
        lambda c, h: c.update_trace_settings("simple", {}, headers=h),
    ),
    ("log settings belong to the operator", lambda c, h: c.get_log_settings(headers=h)),
    ("log settings belong to the operator", lambda c, h: c.update_log_settings({}, headers=h)),
    ("statistics of shared servers", lambda c, h: c.get_inference_statistics(headers=h)),
    (
        "statistics of shared servers",
        lambda c, h: c.get_inference_statistics("simple", "1", headers=h),
    ),
]


@pytest.mark.parametrize(("reason", "call"), CONTROL)
def test_control_of_the_server_is_refused(
    client: triton.InferenceServerClient, auth: dict[str, str], reason: str, call: Control
) -> None:
    with pytest.raises(InferenceServerException, match=reason) as refused:
        call(client, auth)
    assert refused.value.status() == "403"


def test_shared_memory_in_a_request_is_refused(
    client: triton.InferenceServerClient, auth: dict[str, str]
) -> None:
    shared = triton.InferInput("INPUT0", [4], "FP32")
    shared.set_shared_memory("region", 16)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        client.infer("echo-fp32", [shared], headers=auth)
    wanted = triton.InferRequestedOutput("OUTPUT0")
    wanted.set_shared_memory("region", 16)
    with pytest.raises(InferenceServerException, match="shared memory is not offered"):
        client.infer(
            "echo-fp32",
            [given("INPUT0", np.zeros(4, np.float32), "FP32")],
            outputs=[wanted],
            headers=auth,
        )


def test_sequences_are_refused(client: triton.InferenceServerClient, auth: dict[str, str]) -> None:
    with pytest.raises(InferenceServerException, match="sequences are not offered"):
        client.infer(
            "echo-fp32",
            [given("INPUT0", np.zeros(4, np.float32), "FP32")],
            sequence_id=7,
            sequence_start=True,
            headers=auth,
        )


def test_nested_data_is_row_major(edge: Any) -> None:
    rows = [[*range(16)], [*range(16, 32)]]
    document = {
        "inputs": [
            {"name": name, "shape": [2, 16], "datatype": "INT32", "data": rows}
            for name in ("INPUT0", "INPUT1")
        ]
    }
    status, headers, answer = edge.post_json("/v2/models/simple/infer", document)

    assert status == 200
    assert headers["content-type"] == "application/json"
    assert answer["outputs"][0]["data"] == [2 * n for n in range(32)]
    assert answer["outputs"][0]["shape"] == [2, 16]
