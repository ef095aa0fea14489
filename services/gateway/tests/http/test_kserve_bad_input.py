"""KServe v2 requests over HTTP that are wrong, and what they are told."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest


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
    ("shape too large to say", "echo-fp32", {"inputs": [fp32(shape=[2**62] * 300)]}),
    (
        "shape of texts too large to say",
        "echo-bytes",
        {"inputs": [{**of("BYTES", "a"), "shape": [2**62] * 300}]},
    ),
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


def test_dimensions_are_counted_before_they_are_multiplied(edge: Any) -> None:
    """Multiplying as many as a body holds takes minutes, and everybody else would wait."""
    document = {"inputs": [fp32(shape=[2**62] * 10_000)]}
    status, _, answer = edge.post_json("/v2/models/echo-fp32/infer", document)

    assert status == 400
    assert answer["error"] == "input 'INPUT0': shape must have at most 32 dimensions"


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
        ("gzip", gzip.compress(b"x" * 50_000_000, 9, mtime=0), 413),
        ("deflate", zlib.compress(b"x" * 50_000_000, 9), 413),
        ("gzip", b"not gzip at all", 400),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"more", 400),
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
