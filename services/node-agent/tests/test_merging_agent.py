"""A whole agent whose model may be asked for several requests at once."""

from __future__ import annotations

import asyncio
import struct

import pytest
from busbar_contracts.node.v1 import work_pb2
from tritonclient.grpc import service_pb2

from .node_bench import NodeBench, poll

TELLING = b"""
_own_answer = _answer


def _answer(request):
    values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy().copy()
    if values[0, 0] < FROM:
        return _own_answer(request)
    values[:, 1] = len(values)
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)])
"""
FROM = 1000.0
"""From here on the model says in the second number how many rows it was asked for."""


def _telling(files: dict[str, bytes]) -> None:
    files["1/model.py"] += TELLING.replace(b"FROM", b"%f" % FROM)


@pytest.mark.usefixtures("node")
async def test_an_agent_merges_what_came_together_but_no_suspects(node: NodeBench) -> None:
    digest = await node.push("echo-fp32-batched", _telling)
    await node.place({"echo-fp32-batched": (digest, 64)})
    await node.ready("echo-fp32-batched")
    seen: set[int] = set()

    async def merged() -> bool:
        frames = await _sixty(node, suspect=10)
        answers = [_echoed(each) for each in frames]
        assert [each[0] for each in answers] == [FROM + n for n in range(60)]
        assert all(each.finished.timings.compute_us > 0 for each in frames)
        assert {each[1] for each in answers[::10]} == {1.0}
        seen.update(int(each[1]) for each in answers)
        return max(seen) > 1

    await poll(merged, 30.0)


SULKING = b"""
import threading
_own_answer = _answer


def _answer(request):
    values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
    if not (values[:, 0] == BAD).any():
        return _own_answer(request)
    if len(values) > 1:
        threading.Event().wait(SULKS_S)
    error = pb_utils.TritonError("bad", pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)
"""
BAD, SULKS_S = -2048.0, 1.0
"""For so long it works on what has this in it beside others."""


@pytest.mark.usefixtures("node")
async def test_what_anothers_bad_request_cost_is_nobody_elses_compute_time(node: NodeBench) -> None:
    """Some prices are by compute time."""

    def sulking(files: dict[str, bytes]) -> None:
        code = SULKING.replace(b"SULKS_S", b"%f" % SULKS_S)
        files["1/model.py"] += code.replace(b"BAD", b"%f" % BAD)

    await node.place({"echo-fp32-batched": (await node.push("echo-fp32-batched", sulking), 64)})
    await node.ready("echo-fp32-batched")
    waited_us: list[int] = []

    async def one_waited() -> bool:
        values = (BAD, *range(1, 30))
        sent = await asyncio.gather(
            *(node.send("echo-fp32-batched", _echo(float(value))) for value in values)
        )
        bad, *others = [await each.last() for each in sent]
        assert bad.failed.kind == work_pb2.FAILURE_KIND_REJECTED
        for each in others:
            assert each.finished.timings.compute_us < SULKS_S * 0.8e6
            waited_us.append(each.finished.timings.queue_us)
        return max(waited_us) > SULKS_S * 0.8e6

    await poll(one_waited, 40.0)


async def _sixty(node: NodeBench, suspect: int) -> list[work_pb2.WorkFrame]:
    """What came of 60 at once, each `suspect`th of them having been with a Triton that died."""
    sending = (
        node.send("echo-fp32-batched", _echo(FROM + n), engine_losses=0 if n % suspect else 1)
        for n in range(60)
    )
    sent = await asyncio.gather(*sending)
    return [await each.last() for each in sent]


def _echo(value: float) -> bytes:
    request = service_pb2.ModelInferRequest(model_name="echo-fp32-batched", id=f"{value}")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(struct.pack("<16f", *[value] * 16))
    return request.SerializeToString()


def _echoed(frame: work_pb2.WorkFrame) -> list[float]:
    response = service_pb2.ModelInferResponse.FromString(frame.finished.payload)
    values = [*struct.unpack("<16f", response.raw_output_contents[0])]
    assert response.id == f"{values[0]}"
    return values
