"""Several callers in one call of a real Triton."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from busbar_node_agent.adapters.batches import merging
from busbar_node_agent.adapters.triton_rpc import TritonRpc
from busbar_node_agent.usecases.lane import Infer, TritonRefused
from busbar_node_agent.usecases.merge import REST_TURNS
from busbar_runtime.home import Home
from busbar_runtime.triton import ensure_triton
from busbar_runtime.triton_probe import TritonServer, call, started
from harness.model_threads import model_processes
from tritonclient.grpc import service_pb2

from .node_bench import poll

ROWS_MAX = 16
CONFIG = f"""
backend: "python"
max_batch_size: {ROWS_MAX}
input [
  {{ name: "X", data_type: TYPE_FP32, dims: [ 1 ] }},
  {{ name: "S", data_type: TYPE_STRING, dims: [ -1 ] }}
]
output [
  {{ name: "Y", data_type: TYPE_FP32, dims: [ -1 ] }},
  {{ name: "T", data_type: TYPE_STRING, dims: [ -1 ] }},
  {{ name: "ROWS", data_type: TYPE_INT32, dims: [ 1 ] }}
]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
dynamic_batching {{ }}
parameters {{ key: "busbar_merging" value {{ string_value: "on" }} }}
"""
MODEL = '''
"""Doubles X, reverses texts, and tells how many rows it was asked for; an X below 0 has it fail."""

import pathlib
import threading
import uuid

import numpy as np
import triton_python_backend_utils as pb_utils

ERRORS = {-1: "INVALID_ARG", -2: "INTERNAL", -3: "UNAVAILABLE", -4: "CANCELLED"}
SLOW, FORGETFUL, ENDLESS = -10, -11, -12


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=_serve, args=(request,), daemon=True).start()


def _serve(request):
    sender = request.get_response_sender()
    sender.send(_answer(request, sender), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _answer(request, sender):
    x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
    s = pb_utils.get_input_tensor_by_name(request, "S").as_numpy()
    for value, name in ERRORS.items():
        if value in x:
            code = getattr(pb_utils.TritonError, name)
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"no {value}", code))
    if SLOW in x:
        mark = pathlib.Path(__file__).with_name(f"slow-{uuid.uuid4().hex}")
        mark.touch()
        while not sender.is_cancelled():
            threading.Event().wait(0.02)
        mark.unlink()
    y = np.repeat(x * 2, 700_000, axis=1) if ENDLESS in x else x * 2
    if FORGETFUL in x:
        y = y[:1]
    t = np.array([[text[::-1] for text in row] for row in s], dtype=np.object_).reshape(s.shape)
    rows = np.full((len(x), 1), len(x), dtype=np.int32)
    tensors = {"Y": y, "T": t, "ROWS": rows}
    return pb_utils.InferenceResponse([pb_utils.Tensor(*each) for each in tensors.items()])
'''
SLOW, FORGETFUL, ENDLESS = -10.0, -11.0, -12.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def triton(demo_models: Path, home: Path) -> Iterator[TritonServer]:
    with _started(demo_models, home) as server:
        yield server


async def _slow(home: Path, *, is_at_it: bool = True) -> None:
    """Wait until the model is at a slow request, or at none any more: it leaves a mark of each."""

    async def as_wanted() -> bool:
        return any((home / "models/rows/1").glob("slow-*")) is is_at_it

    await poll(as_wanted, 10.0)


def _started(demo_models: Path, home: Path):
    (home / "models/rows/1").mkdir(parents=True)
    (home / "models/rows/config.pbtxt").write_text(CONFIG)
    (home / "models/rows/1/model.py").write_text(MODEL)
    shutil.copytree(demo_models / "echo-fp32-batched", home / "models/echo-fp32-batched")
    return started(
        ensure_triton(Home.of().cache).argv, repository=home / "models", log=home / "triton.log"
    )


@pytest.fixture
async def rpc(triton: TritonServer) -> AsyncIterator[TritonRpc]:
    for model in ("rows", "echo-fp32-batched"):
        triton.load(model)
    rpc = TritonRpc(triton.grpc_address)
    yield rpc
    await rpc.close()


@pytest.fixture
async def infer(rpc: TritonRpc) -> Infer:
    return await _merging(rpc, "rows")


async def _merging(rpc: TritonRpc, model: str) -> Infer:
    infer = merging(rpc, model, await rpc.config(model, 10.0))
    assert infer is not None
    return infer


def _request(*values: float, texts: int = 1, name: str = "") -> bytes:
    request = service_pb2.ModelInferRequest(model_name="rows", id=name)
    request.inputs.add(name="X", datatype="FP32", shape=[len(values), 1])
    request.inputs.add(name="S", datatype="BYTES", shape=[len(values), texts])
    text = [f"{value:.0f}/{at}".encode() for value in values for at in range(texts)]
    request.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(t)) + t for t in text))
    return request.SerializeToString()


@dataclass(frozen=True)
class Answer:
    values: list[float]
    texts: bytes
    rows: int
    """How many rows the model was asked for at once."""
    name: str


def _read(data: bytes) -> Answer:
    response = service_pb2.ModelInferResponse.FromString(data)
    outputs = dict(
        zip((each.name for each in response.outputs), response.raw_output_contents, strict=True)
    )
    values = struct.unpack(f"<{len(outputs['Y']) // 4}f", outputs["Y"])
    rows = struct.unpack(f"<{len(outputs['ROWS']) // 4}i", outputs["ROWS"])
    assert {each.shape[0] for each in response.outputs} == {len(rows)}
    return Answer([*values], outputs["T"], rows[0], response.id)


def _outcome(result: bytes | BaseException) -> str | list[float]:
    if isinstance(result, TritonRefused):
        return result.code
    assert isinstance(result, bytes), result
    return _read(result).values


async def _all(infer: Infer, *requests: bytes, timeout_s: float = 20.0) -> list[str | list[float]]:
    """What became of requests of one turn."""
    calls = (infer(each, timeout_s, "") for each in requests)
    results = await asyncio.gather(*map(asyncio.ensure_future, calls), return_exceptions=True)
    return [_outcome(each) for each in results]


async def test_each_of_many_gets_its_own_rows_and_name(infer: Infer) -> None:
    requests = [_request(n, n + 0.5, texts=2, name=f"r{n}") for n in range(5)]
    requests += [_request(9.0, texts=3, name="other")]

    answers = [
        _read(each) for each in await asyncio.gather(*(infer(r, 20.0, "") for r in requests))
    ]

    assert [each.values for each in answers] == [[2.0 * n, 2.0 * n + 1.0] for n in range(5)] + [
        [18]
    ]
    assert [each.rows for each in answers] == [10, 10, 10, 10, 10, 1]
    assert [each.name for each in answers] == ["r0", "r1", "r2", "r3", "r4", "other"]
    assert answers[3].texts == b"".join(b"\x03\0\0\0" + t for t in (b"0/3", b"1/3", b"0/4", b"1/4"))


async def test_an_answer_out_of_a_group_says_all_that_a_lone_one_says(
    rpc: TritonRpc, infer: Infer
) -> None:
    requests = [_request(float(n), texts=2, name=f"r{n}") for n in range(3)]
    together = await asyncio.gather(*(infer(each, 20.0, "") for each in requests))
    alone = [await rpc.infer(each, 20.0, "") for each in requests]

    for mine, other in zip(together, alone, strict=True):
        response = service_pb2.ModelInferResponse.FromString(mine)
        expected = service_pb2.ModelInferResponse.FromString(other)
        assert _read(mine).rows == 3
        expected.raw_output_contents[2] = response.raw_output_contents[2]
        assert response == expected


async def test_two_hundred_callers_of_the_demo_model_each_get_their_own_numbers(
    rpc: TritonRpc, triton: TritonServer
) -> None:
    infer = await _merging(rpc, "echo-fp32-batched")
    rows = [[caller + each / 16 for each in range(16)] for caller in range(200)]
    before = _calls_of(triton)

    async def asked(values: list[float]) -> list[float]:
        request = service_pb2.ModelInferRequest(model_name="echo-fp32-batched")
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
        request.raw_input_contents.append(struct.pack("<16f", *values))
        answer = await infer(request.SerializeToString(), 30.0, "")
        raw = service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0]
        return [*struct.unpack("<16f", raw)]

    answers = await asyncio.gather(*map(asked, rows))

    assert answers == rows

    async def counted() -> bool:
        """Triton counts a call after it has answered it."""
        return _calls_of(triton) - before >= 4

    await poll(counted, 10.0)
    assert _calls_of(triton) - before == 4  # of 64 rows at most


def _calls_of(triton: TritonServer) -> int:
    stats = call(f"{triton.http_url}/v2/models/echo-fp32-batched/stats")
    return stats["model_stats"][0]["inference_stats"]["success"]["count"]


async def test_a_group_has_no_more_rows_than_the_model_takes(infer: Infer) -> None:
    requests = [_request(*map(float, range(n, n + 5))) for n in range(7)]
    answers = await asyncio.gather(*(infer(each, 20.0, "") for each in requests))

    assert [_read(each).rows for each in answers] == [15, 15, 15, 15, 15, 15, 5]


async def test_who_comes_alone_is_sent_alone(infer: Infer) -> None:
    assert [_read(await infer(_request(n), 20.0, "")).rows for n in (1.0, 2.0)] == [1, 1]


async def test_what_is_traced_goes_alone(infer: Infer) -> None:
    traced = infer(_request(5.0), 20.0, f"00-{1:032x}-{1:016x}-01")
    others = (infer(_request(float(n)), 20.0, "") for n in range(2))

    answers = [_read(each) for each in await asyncio.gather(traced, *others)]

    assert [each.rows for each in answers] == [1, 2, 2]


@pytest.mark.parametrize(
    ("fault", "code"),
    [(-1.0, "INVALID_ARGUMENT"), (-2.0, "INTERNAL"), (-3.0, "UNAVAILABLE"), (-4.0, "CANCELLED")],
)
async def test_an_error_is_that_of_whose_fault_it_is(infer: Infer, fault: float, code: str) -> None:
    outcomes = await _all(infer, _request(1.0), _request(fault), _request(3.0, 4.0))

    assert outcomes == [[2.0], code, [6.0, 8.0]]


async def test_who_is_asked_for_again_alone_is_told_before(infer: Infer) -> None:
    told: list[float] = []

    async def ask(value: float) -> None:
        with contextlib.suppress(TritonRefused):
            await infer(_request(value), 20.0, "", lambda: told.append(value))

    await ask(1.0)
    await asyncio.gather(ask(2.0), ask(3.0))
    assert told == []

    await asyncio.gather(ask(4.0), ask(-1.0))
    assert sorted(told) == [-1.0, 4.0]


async def test_what_triton_refuses_is_refused_to_all(
    rpc: TritonRpc, infer: Infer, triton: TritonServer
) -> None:
    await rpc.unload("rows", 10.0)

    async def unloaded() -> bool:
        ready = await rpc.model_ready("rows", 10.0)
        return not ready and not model_processes(triton.pid, "rows")

    await poll(unloaded, 10.0)

    assert set(map(str, await _all(infer, _request(1.0), _request(2.0)))) <= {
        "UNAVAILABLE",
        "NOT_FOUND",
    }


async def test_after_an_error_some_turns_go_unmerged(infer: Infer) -> None:
    await _all(infer, _request(1.0), _request(-1.0))
    sizes: list[int] = []
    for _ in range(REST_TURNS + 1):
        answers = await asyncio.gather(*(infer(_request(n), 20.0, "") for n in (1.0, 2.0)))
        sizes.append(_read(answers[0]).rows)

    assert sizes == [1] * REST_TURNS + [2]


@pytest.mark.parametrize("odd", [FORGETFUL, ENDLESS], ids=["rows missing", "too large together"])
async def test_an_answer_that_cannot_be_split_ends_it(
    infer: Infer, odd: float, capfd: pytest.CaptureFixture[str]
) -> None:
    requests = [_request(x, texts=texts) for texts in (1, 2) for x in (odd, 1.0, 2.0)]
    outcomes = await _all(infer, *requests)
    after = await asyncio.gather(*(infer(_request(n), 20.0, "") for n in (3.0, 4.0)))

    assert outcomes[1:3] + outcomes[4:] == [[2.0], [4.0]] * 2
    assert [outcomes[at][0] for at in (0, 3)] == [odd * 2] * 2
    assert [_read(each).rows for each in after] == [1, 1]
    assert "".join(capfd.readouterr()).count("requests are not merged") == 1


async def test_who_leaves_a_group_leaves_the_others_alone(infer: Infer, home: Path) -> None:
    await _slow(home, is_at_it=False)
    calls = [asyncio.ensure_future(infer(_request(n), 2.0, "")) for n in (SLOW, 1.0)]
    short = asyncio.ensure_future(infer(_request(2.0), 0.3, ""))
    await _slow(home)
    calls[0].cancel()
    results = await asyncio.gather(*calls, short, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], TritonRefused)
    assert (results[1].code, results[1].reason) == ("DEADLINE_EXCEEDED", "Deadline Exceeded")
    assert isinstance(results[2], TritonRefused)
    assert results[2].code == "DEADLINE_EXCEEDED"


async def test_each_has_its_own_deadline(infer: Infer) -> None:
    loop = asyncio.get_running_loop()
    ended_s: dict[float, float] = {}

    async def asked(value: float, timeout_s: float) -> None:
        with pytest.raises(TritonRefused, match="Deadline Exceeded"):
            await infer(_request(value), timeout_s, "")
        ended_s[timeout_s] = loop.time() - began_s

    began_s = loop.time()
    await asyncio.gather(asked(SLOW, 1.5), asked(1.0, 0.2), asked(2.0, 0.8))

    assert [*ended_s] == [0.2, 0.8, 1.5]
    assert all(took_s >= timeout_s for timeout_s, took_s in ended_s.items())


async def test_when_all_have_left_the_model_is_told(infer: Infer, home: Path) -> None:
    await _slow(home, is_at_it=False)
    calls = [asyncio.ensure_future(infer(_request(n), 60.0, "")) for n in (SLOW, 1.0)]
    await _slow(home)
    for each in calls:
        each.cancel()

    await _slow(home, is_at_it=False)
    assert all(
        isinstance(each, asyncio.CancelledError)
        for each in await asyncio.gather(*calls, return_exceptions=True)
    )


async def test_who_leaves_before_the_turn_is_over_is_not_sent(infer: Infer) -> None:
    calls = [asyncio.ensure_future(infer(_request(n), 20.0, "")) for n in (1.0, 2.0, 3.0)]
    asyncio.get_running_loop().call_soon(calls[1].cancel)
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(results[1], asyncio.CancelledError)
    answers = [_read(each) for each in (results[0], results[2]) if isinstance(each, bytes)]
    assert [(each.values, each.rows) for each in answers] == [([2.0], 2), ([6.0], 2)]


async def test_a_triton_that_dies_fails_all_of_a_group_at_once(
    demo_models: Path, tmp_path: Path
) -> None:
    with _started(demo_models, tmp_path) as server:
        server.load("rows")
        rpc = TritonRpc(server.grpc_address)
        infer = await _merging(rpc, "rows")
        calls = [asyncio.ensure_future(infer(_request(n), 60.0, "")) for n in (SLOW, 1.0, 2.0)]
        await _slow(tmp_path)
        os.kill(server.pid, signal.SIGKILL)
        async with asyncio.timeout(5.0):
            results = await asyncio.gather(*calls, return_exceptions=True)
        await rpc.close()

    assert [_outcome(each) for each in results] == ["UNAVAILABLE"] * 3
