"""KServe v2 over HTTP through Triton's own clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
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

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), A - B)


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

    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("binary", [True, False])
def test_numbers_that_are_not_finite_come_back_as_they_are(
    client: triton.InferenceServerClient, auth: dict[str, str], binary: bool
) -> None:
    array = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32)
    result = client.infer(
        "echo-fp32",
        [given("INPUT0", array, "FP32")],
        outputs=[triton.InferRequestedOutput("OUTPUT0", binary_data=binary)],
        headers=auth,
    )

    np.testing.assert_array_equal(output(result, "OUTPUT0"), array)


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

    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


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

    for request in pending:
        np.testing.assert_array_equal(request.get_result().as_numpy("OUTPUT0"), A + B)


CONTROL: list[Callable[[triton.InferenceServerClient, dict[str, str]], Any]] = [
    lambda c, h: c.load_model("simple", headers=h),
    lambda c, h: c.unload_model("simple", headers=h),
    lambda c, h: c.get_model_repository_index(headers=h),
    lambda c, h: c.register_system_shared_memory("r", "/key", 64, headers=h),
    lambda c, h: c.unregister_system_shared_memory(headers=h),
    lambda c, h: c.unregister_system_shared_memory("r", headers=h),
    lambda c, h: c.get_system_shared_memory_status(headers=h),
    lambda c, h: c.get_cuda_shared_memory_status("r", headers=h),
    lambda c, h: c.register_cuda_shared_memory("r", b"handle", 0, 64, headers=h),
    lambda c, h: c.unregister_cuda_shared_memory(headers=h),
    lambda c, h: c.get_trace_settings(headers=h),
    lambda c, h: c.update_trace_settings("simple", {}, headers=h),
    lambda c, h: c.get_log_settings(headers=h),
    lambda c, h: c.update_log_settings({}, headers=h),
    lambda c, h: c.get_inference_statistics(headers=h),
    lambda c, h: c.get_inference_statistics("simple", "1", headers=h),
]


@pytest.mark.parametrize("call", CONTROL)
def test_control_of_the_server_is_refused(
    client: triton.InferenceServerClient,
    auth: dict[str, str],
    call: Callable[[triton.InferenceServerClient, dict[str, str]], Any],
) -> None:
    with pytest.raises(InferenceServerException, match="not offered") as refused:
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


def fp32(**changes: Any) -> dict[str, Any]:
    return {"name": "INPUT0", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0], **changes}


def of(datatype: str, *data: Any) -> dict[str, Any]:
    return {"name": "INPUT0", "shape": [len(data)], "datatype": datatype, "data": list(data)}


BAD: list[tuple[str, str, Any]] = [
    ("no inputs", "echo-fp32", {}),
    ("empty inputs", "echo-fp32", {"inputs": []}),
    ("inputs of the wrong type", "echo-fp32", {"inputs": {"INPUT0": 1}}),
    ("an input of the wrong type", "echo-fp32", {"inputs": ["INPUT0"]}),
    ("no name", "echo-fp32", {"inputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]}),
    ("a name that is a number", "echo-fp32", {"inputs": [fp32(name=1)]}),
    ("no shape", "echo-fp32", {"inputs": [{k: v for k, v in fp32().items() if k != "shape"}]}),
    ("negative shape", "echo-fp32", {"inputs": [fp32(shape=[-2])]}),
    ("fractional shape", "echo-fp32", {"inputs": [fp32(shape=[2.0])]}),
    ("boolean shape", "echo-fp32", {"inputs": [fp32(shape=[True])]}),
    ("enormous shape", "echo-fp32", {"inputs": [fp32(shape=[2**62, 2**62])]}),
    ("shape beyond 64 bits", "echo-fp32", {"inputs": [fp32(shape=[2**63])]}),
    ("no data", "echo-fp32", {"inputs": [{k: v for k, v in fp32().items() if k != "data"}]}),
    ("too few elements", "echo-fp32", {"inputs": [fp32(shape=[3])]}),
    ("too many elements", "echo-fp32", {"inputs": [fp32(shape=[1])]}),
    ("wrong rank", "echo-fp32", {"inputs": [fp32(shape=[1, 2])]}),
    ("nested unlike the shape", "echo-fp32", {"inputs": [fp32(data=[[1.0], [2.0]])]}),
    ("ragged", "echo-fp32", {"inputs": [fp32(data=[[1.0, 2.0], [3.0]])]}),
    ("data that is text", "echo-fp32", {"inputs": [fp32(data="12")]}),
    ("text as number", "echo-fp32", {"inputs": [of("FP32", "1")]}),
    ("true as number", "echo-fp32", {"inputs": [of("FP32", True)]}),
    ("null as number", "echo-fp32", {"inputs": [of("FP32", None)]}),
    ("float overflow", "echo-fp32", {"inputs": [of("FP32", 1e39)]}),
    ("float as integer", "echo-int64", {"inputs": [of("INT64", 1.0)]}),
    ("integer overflow", "echo-uint8", {"inputs": [of("UINT8", 256)]}),
    ("negative unsigned", "echo-uint64", {"inputs": [of("UINT64", -1)]}),
    ("beyond 64 bits", "echo-uint64", {"inputs": [of("UINT64", 2**64)]}),
    ("number as boolean", "echo-bool", {"inputs": [of("BOOL", 1)]}),
    ("number as text", "echo-bytes", {"inputs": [of("BYTES", 1)]}),
    ("half precision as JSON", "echo-fp16", {"inputs": [of("FP16", 1.0)]}),
    ("unknown datatype", "echo-fp32", {"inputs": [of("FLOAT", 1.0)]}),
    ("wrong datatype", "echo-fp32", {"inputs": [of("FP64", 1.0)]}),
    ("unknown input", "echo-fp32", {"inputs": [fp32(name="INPUT9")]}),
    ("missing input", "simple", {"inputs": [of("INT32", *range(16))]}),
    ("duplicate input", "echo-fp32", {"inputs": [fp32(), fp32()]}),
    ("unknown output", "echo-fp32", {"inputs": [fp32()], "outputs": [{"name": "OUTPUT9"}]}),
    (
        "duplicate output",
        "echo-fp32",
        {"inputs": [fp32()], "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]},
    ),
    ("outputs of the wrong type", "echo-fp32", {"inputs": [fp32()], "outputs": "OUTPUT0"}),
    ("id of the wrong type", "echo-fp32", {"inputs": [fp32()], "id": 5}),
    ("parameters of the wrong type", "echo-fp32", {"inputs": [fp32()], "parameters": [1]}),
    ("a nested parameter", "echo-fp32", {"inputs": [fp32()], "parameters": {"a": {"b": 1}}}),
    (
        "binary_data_output as text",
        "echo-fp32",
        {"inputs": [fp32()], "parameters": {"binary_data_output": "yes"}},
    ),
    (
        "negative binary size",
        "echo-fp32",
        {"inputs": [{**fp32(), "parameters": {"binary_data_size": -8}}]},
    ),
    (
        "data and binary size",
        "echo-fp32",
        {"inputs": [{**fp32(), "parameters": {"binary_data_size": 0}}]},
    ),
    (
        "binary size beyond the body",
        "echo-fp32",
        {
            "inputs": [
                {
                    "name": "INPUT0",
                    "shape": [2],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 8},
                }
            ]
        },
    ),
    (
        "NaN",
        "echo-fp32",
        b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"FP32","data":[NaN]}]}',
    ),
    (
        "infinity",
        "echo-fp32",
        b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"FP32","data":[-Infinity]}]}',
    ),
    ("not JSON", "echo-fp32", b"inputs"),
    ("a list", "echo-fp32", b"[]"),
    ("nothing", "echo-fp32", b""),
    ("invalid UTF-8", "echo-fp32", b'{"id": "\xc3\x28"}'),
    ("a decoupled model", "chatty", {"inputs": [fp32()]}),
]


@pytest.mark.parametrize(("model", "document"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_a_request_that_does_not_fit_is_refused(edge: Any, model: str, document: Any) -> None:
    before = len(edge.serving.calls)
    status, headers, answer = edge.post_json(f"/v2/models/{model}/infer", document)

    assert status == 400
    assert list(answer) == ["error"]
    assert isinstance(answer["error"], str)
    assert headers["x-request-id"].startswith("req_")
    assert len(edge.serving.calls) == before


def binary_request(size: int, shape: int = 2, datatype: str = "FP32") -> bytes:
    entry = {
        "name": "INPUT0",
        "shape": [shape],
        "datatype": datatype,
        "parameters": {"binary_data_size": size},
    }
    return json.dumps({"inputs": [entry]}).encode()


HEADER_LENGTHS = ["-1", "abc", "1.5", "", "0", "99999", "9" * 30, "+5", "0x10"]


@pytest.mark.parametrize("length", HEADER_LENGTHS)
def test_a_header_length_that_makes_no_sense_is_refused(edge: Any, length: str) -> None:
    body = binary_request(8) + bytes(8)
    raw = length.encode()
    head = (
        b"POST /v2/models/echo-fp32/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Authorization: Bearer bb_the-key-of-the-tests\r\n"
        b"Inference-Header-Content-Length: " + raw + b"\r\n"
    )
    status, _, answer = edge.talk(
        head + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )

    assert status == 400
    assert "Inference-Header-Content-Length" in json.loads(answer)["error"]


@pytest.mark.parametrize(
    ("size", "tail", "reason"),
    [
        (12, bytes(8), "only 8 bytes are left"),
        (8, bytes(12), "4 bytes follow"),
        (4, bytes(4), "needs 8"),
        (16, bytes(16), "needs 8"),
    ],
)
def test_binary_data_must_be_what_was_announced(
    edge: Any, size: int, tail: bytes, reason: str
) -> None:
    json_part = binary_request(size)
    status, _, answer = edge.request(
        "POST",
        "/v2/models/echo-fp32/infer",
        json_part + tail,
        {"Inference-Header-Content-Length": str(len(json_part))},
    )

    assert status == 400
    assert reason in json.loads(answer)["error"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x05\x00\x00\x00abc",
        b"\xff\xff\xff\xff",
        b"\x01\x00",
        b"\x00\x00\x00\x00" * 3,
        b"\x01\x00\x00\x00a",
    ],
)
def test_a_bytes_tensor_whose_lengths_lie_is_refused(edge: Any, raw: bytes) -> None:
    json_part = binary_request(len(raw), 2, "BYTES")
    status, _, answer = edge.request(
        "POST",
        "/v2/models/echo-bytes/infer",
        json_part + raw,
        {"Inference-Header-Content-Length": str(len(json_part))},
    )

    assert status == 400
    assert "INPUT0" in json.loads(answer)["error"]


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


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nothing/infer", 404),
        ("/v2/models/secret/infer", 404),
        ("/v2/models/simple/versions/7/infer", 404),
        ("/v2/models/simple/versions/../infer", 404),
        ("/v2/models//infer", 404),
        ("/v2/models/%00/infer", 404),
        ("/v2/models/absent/infer", 503),
        ("/v2/models/" + "x" * 5000 + "/infer", 404),
    ],
)
def test_models_that_cannot_answer(edge: Any, path: str, status: int) -> None:
    document = {"inputs": [fp32()]}
    got, headers, answer = edge.post_json(path, document)

    assert got == status
    assert answer["error"]
    assert ("retry-after" in headers) == (status == 503)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(b"x" * 50_000_000, 9), 413),
        ("deflate", zlib.compress(b"x" * 50_000_000, 9), 413),
        ("gzip", b"not gzip at all", 400),
        ("gzip", gzip.compress(b"{}")[:-4], 400),
        ("gzip", gzip.compress(b"{}") + b"more", 400),
        ("br", b"{}", 400),
        ("gzip, gzip", b"{}", 400),
    ],
)
def test_compressed_bodies_are_bounded_and_checked(
    edge: Any, encoding: str, body: bytes, status: int
) -> None:
    got, _, answer = edge.request(
        "POST", "/v2/models/echo-fp32/infer", body, {"Content-Encoding": encoding}
    )

    assert got == status
    assert json.loads(answer)["error"]


def test_the_models_own_limit_on_a_request_holds(edge: Any) -> None:
    document = {"inputs": [of("FP32", *([0.5] * 33_000))]}
    status, _, answer = edge.post_json("/v2/models/echo-fp32/infer", document)

    assert status == 413
    assert "131072" in answer["error"]
