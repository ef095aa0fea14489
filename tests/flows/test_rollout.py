"""New versions of a model, under load, on the real platform: one is bad and one is good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from busbar_messaging.bundles.sealing import SigningKey
from busbar_runtime.platform import Platform
from harness.bundles import Made, files_of, make
from harness.operator import Customer, Json, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

NAME = "rolled"
SIMPLE = Path(__file__).parents[2] / "deploy/demo/models/simple"
STEP_S = 150
"""Loading a version, watching it, and settling."""
TERMS = {"canary_percent": 50, "observe_s": 1, "min_samples": 20, "max_latency_ratio": 100}
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


def version(platform: Platform, number: int, *, more: bytes = b"") -> Made:
    """A version of the model that adds and subtracts."""
    files = files_of(SIMPLE)
    manifest = files["busbar.yaml"].replace(b'version: "1"', f'version: "{number}"'.encode())
    model = files["1/model.py"] + more
    made = make({**files, "busbar.yaml": manifest, "1/model.py": model})
    return made.sealed_by(SigningKey.from_pem(platform.secrets.signing_key.encode()))


class Asking:
    """Customers that ask without a break, and everything that they were told."""

    def __init__(self, platform: Platform, customer: Customer) -> None:
        self._platform, self._customer = platform, customer
        self.answered = 0
        self.failed = list[str]()
        self._done = asyncio.Event()

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[Asking]:
        """Ask for as long as the context lasts."""
        async with grpc.aio.insecure_channel(self._platform.endpoints["grpc"]) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(self._ask(infer))
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

    async def _ask(self, infer: Any) -> None:
        metadata = (("authorization", f"Bearer {self._customer.key}"),)
        while not self._done.is_set():
            try:
                payload = await infer(QUESTION, timeout=20, metadata=metadata)
                answer = service_pb2.ModelInferResponse.FromString(payload)
                assert answer.model_name == NAME
                self.answered += 1
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"{error.code()}: {error.details()}")


def question() -> bytes:
    """2 and 2, sixteen times."""
    message = service_pb2.ModelInferRequest(model_name=NAME)
    for tensor in ("INPUT0", "INPUT1"):
        message.inputs.add(name=tensor, datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(np.full(16, 2, dtype="<i4").tobytes())
    return message.SerializeToString()


QUESTION = question()


async def until(operator: Operator, what: str, **wanted: Any) -> Json:
    """Wait for what the deployment's rollout shows."""

    def shows(view: Json) -> bool:
        seen = {"bundle": view["bundle"], "status": view["status"], **view["rollout"]}
        return all(seen[key] == value for key, value in wanted.items())

    path = f"/admin/v1/deployments/{NAME}"
    return await eventually(
        lambda: operator.json("scheduler", "GET", path), within_s=STEP_S, what=what, until=shows
    )


async def test_a_bad_version_goes_back_and_a_good_one_takes_over_without_a_failed_request(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    first, broken, good = (
        version(platform, 1),
        version(platform, 2, more=BROKEN),
        version(platform, 3, more=b"# better\n"),
    )
    for made in (first, broken, good):
        await operator.push(made)
    path = f"/admin/v1/deployments/{NAME}"

    async def declare(made: Made) -> None:
        await operator.json(
            "scheduler", "PUT", path, json={"bundle": made.digest, "rollout": TERMS}
        )

    await declare(first)
    await until(operator, "the first version", status="ready")
    async with Asking(platform, customer).going_on() as asking:
        await declare(broken)
        await eventually(
            lambda: operator.json("scheduler", "GET", path),
            within_s=STEP_S,
            what="the broken version is rolled back",
            until=lambda view: bool(view["rollout"]["rolled_back"]),
        )
        await declare(broken)
        back = await operator.json("scheduler", "GET", path)
        await declare(good)
        taken = await until(operator, "the good version serves", bundle=good.digest, status="ready")
        await asking.until_more(20)
    await operator.call("scheduler", "DELETE", path)

    assert back["bundle"] == first.digest
    assert back["rollout"]["rolled_back"]["bundle"] == broken.digest
    assert "requests failed" in back["rollout"]["rolled_back"]["reason"]
    assert (back["rollout"]["canary"] or {"phase": "leaving"})["phase"] == "leaving"
    assert taken["previous_bundle"] == first.digest
    assert asking.failed == [], asking.failed[:3]
