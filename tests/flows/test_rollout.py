"""New versions of models, under load, on the real platform: broken, slow and good ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from busbar_messaging.bundles.sealing import SigningKey
from busbar_runtime.platform import Platform
from harness.bundles import Made, files_of, make
from harness.operator import Customer, Json, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

NAME, STREAMED = "rolled", "rolled-stream"
MODELS = Path(__file__).parents[2] / "deploy/demo/models"
STEP_S = 150
"""Loading a version, watching it, and settling."""
TERMS = {"canary_percent": 50, "observe_s": 1, "min_samples": 20, "max_latency_ratio": 100}
WATCHED = {**TERMS, "observe_s": 30, "min_samples": 10, "max_latency_ratio": 2}
SLOW = b"""
import threading
_at_once = _answer
def _answer(request):
    left = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
    if left[0][0] == 2:  # as customers ask
        threading.Event().wait(0.25)
    return _at_once(request)
"""
STREAM_OF, STREAM_EVERY_MS = 20, 25
BROKEN = b"""
def _answer(request):
    left = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
    right = pb_utils.get_input_tensor_by_name(request, "INPUT1").as_numpy()
    if right[0][0] != 1:  # as it is in the warm-up
        raise RuntimeError("the new version is broken")
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor("OUTPUT0", left + right), pb_utils.Tensor("OUTPUT1", left - right)]
    )
"""


def version(platform: Platform, number: int, *, more: bytes = b"", model: str = "simple") -> Made:
    """A version of a demo model."""
    files = files_of(MODELS / model)
    manifest = files["busbar.yaml"].replace(b'version: "1"', f'version: "{number}"'.encode())
    files |= {"busbar.yaml": manifest, "1/model.py": files["1/model.py"] + more}
    return make(files).sealed_by(SigningKey.from_pem(platform.secrets.signing_key.encode()))


class Asking:
    """Customers that ask without a break, and everything that they were told."""

    def __init__(self, platform: Platform, customer: Customer, *, streams: bool = True) -> None:
        self._platform, self._customer, self._streams = platform, customer, streams
        self.answered = self.streams = 0
        self.failed = list[str]()
        self._done = asyncio.Event()

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[Asking]:
        """Ask for as long as the context lasts."""
        channel = grpc.aio.insecure_channel(self._platform.endpoints["grpc"])
        async with channel, asyncio.TaskGroup() as group:
            for ask in [self._one] * 4 + [self._stream] * (4 if self._streams else 0):
                group.create_task(self._ask(channel, ask))
            try:
                yield self
            finally:
                self._done.set()

    async def until_more(self, answers: int) -> None:
        """Wait for so many more answers."""
        before = self.answered

        async def count() -> int:
            return self.answered - before

        await eventually(count, within_s=20, what="answers", until=lambda more: more > answers)

    async def _ask(
        self, channel: grpc.aio.Channel, ask: Callable[[grpc.aio.Channel], Awaitable[None]]
    ) -> None:
        while not self._done.is_set():
            try:
                await ask(channel)
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"{error.code()}: {error.details()}")

    @property
    def _metadata(self) -> tuple[tuple[str, str]]:
        return (("authorization", f"Bearer {self._customer.key}"),)

    async def _one(self, channel: grpc.aio.Channel) -> None:
        infer: Any = channel.unary_unary(f"{SERVICE}/ModelInfer")
        payload = await infer(QUESTION, timeout=20, metadata=self._metadata)
        assert service_pb2.ModelInferResponse.FromString(payload).model_name == NAME
        self.answered += 1

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        """Half a second of answers, all of them in order."""
        call: Any = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(
            timeout=20, metadata=self._metadata
        )
        await call.write(STREAM_QUESTION)
        await call.done_writing()
        seen = list[int]()
        async for payload in call:
            answer = service_pb2.ModelStreamInferResponse.FromString(payload)
            if answer.error_message:
                self.failed.append(f"stream: {answer.error_message}")
            seen += [
                int.from_bytes(raw, "little")
                for raw in answer.infer_response.raw_output_contents[:1]
            ]
        if seen != list(range(STREAM_OF)):
            self.failed.append(f"stream: {seen}")
        self.streams += 1


def question() -> bytes:
    """2 and 2, sixteen times."""
    message = service_pb2.ModelInferRequest(model_name=NAME)
    for tensor in ("INPUT0", "INPUT1"):
        message.inputs.add(name=tensor, datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(np.full(16, 2, dtype="<i4").tobytes())
    return message.SerializeToString()


def stream_question() -> bytes:
    """So many numbers, one after the other."""
    message = service_pb2.ModelInferRequest(model_name=STREAMED)
    for name, datatype, values in (
        ("IN", "INT32", np.arange(STREAM_OF, dtype="<i4")),
        ("DELAY", "UINT32", np.full(STREAM_OF, STREAM_EVERY_MS, dtype="<u4")),
        ("WAIT", "UINT32", np.zeros(1, dtype="<u4")),
    ):
        message.inputs.add(name=name, datatype=datatype, shape=[len(values)])
        message.raw_input_contents.append(values.tobytes())
    return message.SerializeToString()


QUESTION, STREAM_QUESTION = question(), stream_question()
SERVICE = "/inference.GRPCInferenceService"


@pytest.fixture(autouse=True)
async def removed(platform: Platform) -> AsyncIterator[None]:
    """Nothing is left of a test, whatever became of it: versions remember what went wrong."""
    yield
    operator = Operator(platform.endpoints)
    for name in (NAME, STREAMED):
        await operator.call("scheduler", "DELETE", f"/admin/v1/deployments/{name}")


async def until(operator: Operator, what: str, name: str = NAME, **wanted: Any) -> Json:
    """Wait for what the deployment's rollout shows."""

    def shows(view: Json) -> bool:
        seen = {"bundle": view["bundle"], "status": view["status"], **view["rollout"]}
        return all(seen[key] == value for key, value in wanted.items())

    path = f"/admin/v1/deployments/{name}"
    return await eventually(
        lambda: operator.json("scheduler", "GET", path), within_s=STEP_S, what=what, until=shows
    )


async def declare(
    operator: Operator, made: Made, name: str = NAME, terms: Json | None = None
) -> None:
    """Have this version tried, and then serve."""
    body = {"bundle": made.digest, "rollout": terms or TERMS}
    await operator.json("scheduler", "PUT", f"/admin/v1/deployments/{name}", json=body)


async def until_back(operator: Operator, made: Made) -> Json:
    """Wait until this version was rolled back."""
    return await eventually(
        lambda: operator.json("scheduler", "GET", f"/admin/v1/deployments/{NAME}"),
        within_s=STEP_S,
        what="the version is rolled back",
        until=lambda view: (view["rollout"]["rolled_back"] or {}).get("bundle") == made.digest,
    )


async def test_versions_that_nobody_watches_change_places_without_a_failed_request(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    path = f"/admin/v1/deployments/{NAME}"
    first, second = version(platform, 6), version(platform, 7, more=b"# other\n")
    missing = version(platform, 8, more=b"raise RuntimeError('it does not load')\n")
    for made in (first, second, missing):
        await operator.push(made)

    await operator.json("scheduler", "PUT", path, json={"bundle": first.digest})
    await until(operator, "the first version", status="ready")
    await operator.serves(NAME)
    async with Asking(platform, customer, streams=False).going_on() as asking:
        await operator.json("scheduler", "PUT", path, json={"bundle": second.digest})
        other = await until(operator, "the other", bundle=second.digest, canary=None)
        for _ in range(2):  # nobody goes forward again by saying it twice
            await operator.json("scheduler", "POST", f"{path}/rollback", json={})
        back = await until(operator, "the first again", bundle=first.digest, canary=None)
        await operator.json("scheduler", "PUT", path, json={"bundle": missing.digest})
        await until_failing(operator)
        await asking.until_more(20)
        stays = await operator.json("scheduler", "POST", f"{path}/rollback", json={})

    assert (other["status"], other["previous_bundle"]) == ("ready", first.digest)
    assert (back["status"], back["previous_bundle"]) == ("ready", second.digest)
    assert (stays["bundle"], stays["status"]) == (first.digest, "ready")
    assert asking.failed == [], asking.failed[:3]


async def until_failing(operator: Operator) -> None:
    """Wait until it is said that the version that should take over does not load."""

    def told(view: Json) -> bool:
        canary = view["rollout"]["canary"]
        return canary is not None and "it does not load" in canary["reason"]

    await eventually(
        lambda: operator.json("scheduler", "GET", f"/admin/v1/deployments/{NAME}"),
        within_s=STEP_S,
        what="the version that does not load says so",
        until=told,
    )


async def test_bad_versions_go_back_and_good_ones_take_over_without_a_failed_request(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    first, broken, good = (
        version(platform, 1),
        version(platform, 2, more=BROKEN),
        version(platform, 3, more=b"# better\n"),
    )
    slow = version(platform, 4, more=SLOW)
    old_stream = version(platform, 1, model="repeat")
    new_stream = version(platform, 2, more=b"# better\n", model="repeat")
    for made in (first, broken, slow, good, old_stream, new_stream):
        await operator.push(made)

    await declare(operator, first)
    await declare(operator, old_stream, STREAMED)
    await until(operator, "the first version", status="ready")
    await until(operator, "the first of streams", STREAMED, status="ready")
    await operator.serves(NAME, STREAMED)
    async with Asking(platform, customer).going_on() as asking:
        await declare(operator, new_stream, STREAMED)
        await declare(operator, broken)
        await until_back(operator, broken)
        await declare(operator, broken)
        back = await operator.json("scheduler", "GET", f"/admin/v1/deployments/{NAME}")
        await declare(operator, slow, terms=WATCHED)
        slower = await until_back(operator, slow)
        await declare(operator, good)
        taken = await until(operator, "the good version serves", bundle=good.digest, status="ready")
        streamed = await until(
            operator, "streams of the new", STREAMED, bundle=new_stream.digest, status="ready"
        )
        await asking.until_more(20)

    assert back["bundle"] == first.digest
    assert back["rollout"]["rolled_back"]["bundle"] == broken.digest
    assert "requests failed" in back["rollout"]["rolled_back"]["reason"]
    assert (back["rollout"]["canary"] or {"phase": "leaving"})["phase"] == "leaving"
    assert slower["bundle"] == first.digest
    assert "times as long" in slower["rollout"]["rolled_back"]["reason"]
    assert taken["previous_bundle"] == first.digest
    assert streamed["previous_bundle"] == old_stream.digest
    assert asking.streams > 10
    assert asking.failed == [], asking.failed[:3]
