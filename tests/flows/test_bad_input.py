"""Hostile and clumsy callers get a clear error in the protocol's own shape, and no charge."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

import grpc
import httpx
import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator
from tritonclient.grpc import service_pb2

INFER = "/v2/models/simple/infer"
SIXTEEN = list(range(16))


def tensor(name: str = "INPUT0", **changes: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "INT32", "shape": [1, 16], "data": SIXTEEN, **changes}


def body(*tensors: dict[str, Any], **more: Any) -> str:
    return json.dumps({"inputs": list(tensors), **more})


GOOD = body(tensor(), tensor("INPUT1"))
V2_CASES: dict[str, tuple[str, str | bytes, dict[str, str]]] = {
    "broken json": (INFER, "{", {}),
    "no json object": (INFER, "[1]", {}),
    "empty body": (INFER, "", {}),
    "invalid utf-8": (INFER, b'{"inputs": "\xff\xfe"}', {}),
    "no inputs": (INFER, "{}", {}),
    "inputs of a wrong type": (INFER, '{"inputs": 7}', {}),
    "missing input": (INFER, body(tensor()), {}),
    "unknown input": (INFER, body(tensor(), tensor("INPUT1"), tensor("INPUT9")), {}),
    "duplicate tensor names": (INFER, body(tensor(), tensor()), {}),
    "shape does not fit the data": (INFER, body(tensor(shape=[1, 15]), tensor("INPUT1")), {}),
    "negative shape": (INFER, body(tensor(shape=[-1, 16]), tensor("INPUT1")), {}),
    "absurd shape": (INFER, body(tensor(shape=[2**62, 2**62]), tensor("INPUT1")), {}),
    "wrong datatype": (INFER, body(tensor(datatype="FP32"), tensor("INPUT1")), {}),
    "unknown datatype": (INFER, body(tensor(datatype="INT33"), tensor("INPUT1")), {}),
    "words for numbers": (INFER, body(tensor(data=["x"] * 16), tensor("INPUT1")), {}),
    "numbers out of range": (INFER, body(tensor(data=[2**40] * 16), tensor("INPUT1")), {}),
    "fractions for integers": (INFER, body(tensor(data=[0.5] * 16), tensor("INPUT1")), {}),
    "nan": (INFER, GOOD.replace("[0, ", "[NaN, ", 1), {}),
    "infinity": (INFER, GOOD.replace("[0, ", "[Infinity, ", 1), {}),
    "a number beyond any float": (INFER, GOOD.replace("[0, ", "[1e999, ", 1), {}),
    "unknown output": (INFER, body(tensor(), tensor("INPUT1"), outputs=[{"name": "NOPE"}]), {}),
    "header longer than the body": (INFER, GOOD, {"inference-header-content-length": "99999"}),
    "negative header length": (INFER, GOOD, {"inference-header-content-length": "-1"}),
    "header length that is no number": (INFER, GOOD, {"inference-header-content-length": "x"}),
    "shared memory": (
        INFER,
        body(tensor(parameters={"shared_memory_region": "a"}), tensor("INPUT1")),
        {},
    ),
    "garbage that claims to be gzip": (INFER, GOOD, {"content-encoding": "gzip"}),
    "unknown encoding": (INFER, GOOD, {"content-encoding": "brotli-ish"}),
    "unknown model": ("/v2/models/nope/infer", GOOD, {}),
    "unknown version": ("/v2/models/simple/versions/99/infer", GOOD, {}),
    "sql in a model name": ("/v2/models/' OR 1=1 --/infer", GOOD, {}),
}


@pytest.fixture
async def http(platform: Platform, customer: Customer) -> Any:
    headers = {"authorization": f"Bearer {customer.key}"}
    base = platform.endpoints["http"]
    async with httpx.AsyncClient(
        base_url=base, headers=headers, trust_env=False, verify=False, timeout=30
    ) as c:
        yield c


@pytest.mark.parametrize("case", V2_CASES, ids=V2_CASES.keys())
async def test_a_bad_v2_request_gets_a_clear_4xx(http: httpx.AsyncClient, case: str) -> None:
    path, content, headers = V2_CASES[case]

    answer = await http.post(path, content=content, headers=headers)

    assert 400 <= answer.status_code < 500, answer.text
    assert answer.status_code != HTTPStatus.UNAUTHORIZED
    assert list(answer.json()) == ["error"]
    assert len(answer.json()["error"]) > 10


CHAT = "/v1/chat/completions"
MESSAGE = [{"role": "user", "content": "hi"}]
V1_CASES: dict[str, tuple[str, str | bytes]] = {
    "broken json": (CHAT, "{"),
    "invalid utf-8": (CHAT, b'{"model": "\xff"}'),
    "no model": (CHAT, json.dumps({"messages": MESSAGE})),
    "no messages": (CHAT, json.dumps({"model": "tiny-lm"})),
    "messages of a wrong type": (CHAT, json.dumps({"model": "tiny-lm", "messages": "hi"})),
    "unknown role": (
        CHAT,
        json.dumps({"model": "tiny-lm", "messages": [{"role": "x", "content": "y"}]}),
    ),
    "negative max_tokens": (
        CHAT,
        json.dumps({"model": "tiny-lm", "messages": MESSAGE, "max_tokens": -5}),
    ),
    "max_tokens nan": (CHAT, '{"model":"tiny-lm","messages":[],"max_tokens":NaN}'),
    "stream of a wrong type": (
        CHAT,
        json.dumps({"model": "tiny-lm", "messages": MESSAGE, "stream": "maybe"}),
    ),
    "an enormous prompt": (
        "/v1/completions",
        json.dumps({"model": "tiny-lm", "prompt": "x" * 300_000}),
    ),
    "an unknown parameter": (
        CHAT,
        json.dumps({"model": "tiny-lm", "messages": MESSAGE, "max_tokns": 5}),
    ),
    "embeddings of nothing": (
        "/v1/embeddings",
        json.dumps({"model": "all-minilm-l6-v2", "input": []}),
    ),
    "embeddings of an empty string": (
        "/v1/embeddings",
        json.dumps({"model": "all-minilm-l6-v2", "input": ""}),
    ),
    "embeddings of numbers": (
        "/v1/embeddings",
        json.dumps({"model": "all-minilm-l6-v2", "input": {"a": 1}}),
    ),
    "other dimensions": (
        "/v1/embeddings",
        json.dumps({"model": "all-minilm-l6-v2", "input": "x", "dimensions": 7}),
    ),
    "unknown encoding": (
        "/v1/embeddings",
        json.dumps({"model": "all-minilm-l6-v2", "input": "x", "encoding_format": "hex"}),
    ),
}


@pytest.mark.parametrize("case", V1_CASES, ids=V1_CASES.keys())
async def test_a_bad_v1_request_gets_openais_error(http: httpx.AsyncClient, case: str) -> None:
    path, content = V1_CASES[case]

    answer = await http.post(path, content=content, headers={"content-type": "application/json"})

    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer  x y",
        "Basic YTpi",
        "Bearer ' OR 1=1 --",
        "Bearer " + "k" * 9000,
    ],
)
async def test_a_bad_key_is_unauthenticated_in_each_shape(
    platform: Platform, authorization: str
) -> None:
    headers = {"authorization": authorization}
    async with httpx.AsyncClient(
        base_url=platform.endpoints["http"], timeout=30, trust_env=False, verify=False
    ) as client:
        v1 = await client.get("/v1/models", headers=headers)
        v2 = await client.post(INFER, content=GOOD, headers=headers)

    assert (v1.status_code, v2.status_code) == (HTTPStatus.UNAUTHORIZED, HTTPStatus.UNAUTHORIZED)
    assert v1.json()["error"]["code"] == "invalid_api_key"
    assert isinstance(v2.json()["error"], str)


async def test_a_body_over_the_limit_is_refused_while_it_is_read(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1024):
            yield b"x" * 65536

    refused: int | None = None
    try:
        refused = (await http.post(INFER, content=endless())).status_code
    except httpx.WriteError:
        refused = HTTPStatus.REQUEST_ENTITY_TOO_LARGE  # the connection was closed on us

    assert refused == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_ten_thousand_headers_are_refused_and_the_gateway_lives(
    platform: Platform, customer: Customer, http: httpx.AsyncClient
) -> None:
    host, _, port = platform.endpoints["http"].removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    many = "".join(f"x-{n}: 1\r\n" for n in range(10_000))
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {customer.key}\r\n{many}\r\n"
    writer.write(head.encode())
    try:
        answer = await asyncio.wait_for(reader.read(4096), 10)
    except ConnectionResetError:  # refused by closing
        answer = b""
    writer.close()

    assert answer == b"" or answer.split()[1] in {b"400", b"431"}
    assert (await http.get("/v2/health/live")).status_code == HTTPStatus.OK


def request(**changes: Any) -> service_pb2.ModelInferRequest:
    made = service_pb2.ModelInferRequest(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        made.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        made.raw_input_contents.append(struct.pack("<16i", *SIXTEEN))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


Request = service_pb2.ModelInferRequest


def drop_an_input(made: Request) -> None:
    made.inputs.pop()
    made.raw_input_contents.pop()


def overrun_strings(made: Request) -> None:
    made.model_name = "simple-string"
    for index, infer_input in enumerate(made.inputs):
        infer_input.datatype = "BYTES"
        made.raw_input_contents[index] = struct.pack("<I", 2**31) + b"x"


def share_memory(made: Request) -> None:
    made.inputs[0].parameters["shared_memory_region"].string_param = "region"


def join_a_sequence(made: Request) -> None:
    made.parameters["sequence_id"].int64_param = 7


MANGLERS: dict[str, Callable[[Request], object]] = {
    "shape": lambda made: made.inputs[0].shape.__setitem__(1, 15),
    "negative shape": lambda made: made.inputs[0].shape.__setitem__(0, -1),
    "datatype": lambda made: setattr(made.inputs[0], "datatype", "FP32"),
    "duplicate": lambda made: setattr(made.inputs[1], "name", "INPUT0"),
    "missing contents": lambda made: made.raw_input_contents.pop(),
    "short contents": lambda made: made.raw_input_contents.__setitem__(0, b"abc"),
    "missing input": drop_an_input,
    "unknown output": lambda made: made.outputs.add(name="NOPE"),
    "shared memory": share_memory,
    "sequence": join_a_sequence,
    "strings overrun": overrun_strings,
}


async def grpc_code(platform: Platform, key: str, payload: bytes) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(platform.endpoints["grpc"]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(payload, timeout=20, metadata=(("authorization", f"Bearer {key}"),))
        return refused.value.code(), refused.value.details() or ""


@pytest.mark.parametrize("how", MANGLERS)
async def test_a_bad_grpc_request_is_an_invalid_argument(
    platform: Platform, customer: Customer, how: str
) -> None:
    bad = request()
    MANGLERS[how](bad)

    code, details = await grpc_code(platform, customer.key, bad.SerializeToString())

    assert code is grpc.StatusCode.INVALID_ARGUMENT, (code, details)
    assert len(details) > 10


@pytest.mark.parametrize(
    ("payload", "key", "code"),
    [
        (b"\xff\xff\xff", "", grpc.StatusCode.INVALID_ARGUMENT),
        (request(model_name="nope").SerializeToString(), "", grpc.StatusCode.NOT_FOUND),
        (request(model_version="99").SerializeToString(), "", grpc.StatusCode.NOT_FOUND),
        (request().SerializeToString(), "bb_wrong", grpc.StatusCode.UNAUTHENTICATED),
        (b"\x00" * (20 * 2**20), "", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["no protobuf", "unknown model", "unknown version", "wrong key", "too large"],
)
async def test_what_is_wrong_as_a_whole_has_its_own_code(
    platform: Platform, customer: Customer, payload: bytes, key: str, code: grpc.StatusCode
) -> None:
    actual, details = await grpc_code(platform, key or customer.key, payload)

    assert actual is code, details


async def test_after_all_this_nothing_was_charged_and_a_good_request_works(
    http: httpx.AsyncClient, operator: Operator, customer: Customer
) -> None:
    for path, content, headers in V2_CASES.values():
        await http.post(path, content=content, headers=headers)
    for path, content in V1_CASES.values():
        await http.post(path, content=content)
    answer = await http.post(INFER, content=GOOD)

    assert answer.status_code == HTTPStatus.OK
    assert answer.json()["outputs"][0]["data"] == [2 * n for n in SIXTEEN]
    await operator.usage_of(answer.headers["x-request-id"])
    assert len(await operator.usage(customer.tenant_id)) == 1
