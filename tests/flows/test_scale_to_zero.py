"""A model that sleeps while nobody asks for it, on the real platform."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import openai
import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

NAME = "sleeper"
AWAKE_S = 3
"""After the last request: a busy machine looks less often than the scheduler."""
LESS_THAN_ANY_WAKING_S = 0.9
"""The gateway expects no model to be awake in less than 1 s."""
PROMPT: list[Any] = [{"role": "user", "content": "What does a node agent do?"}]


@contextlib.asynccontextmanager
async def asleep(operator: Operator, bundle: str) -> AsyncIterator[str]:
    """A model that sleeps soon after nobody asked any more, and does so now."""
    path = f"/admin/v1/deployments/{NAME}"
    wish = {"bundle": bundle, "replicas": 0, "max_replicas": 1, "scale_down_after_s": AWAKE_S}
    await operator.json("scheduler", "PUT", path, json=wish)
    await status_of(operator, "ready", within_s=30)
    await status_of(operator, "asleep", within_s=30)
    await operator.serves(NAME)
    try:
        yield NAME
    finally:
        await operator.call("scheduler", "DELETE", path)


async def status_of(operator: Operator, wanted: str, *, within_s: float) -> dict[str, Any]:
    """Wait until the deployment has that status."""
    return await eventually(
        lambda: operator.json("scheduler", "GET", f"/admin/v1/deployments/{NAME}"),
        within_s=within_s,
        what=f"{NAME} is {wanted}",
        until=lambda view: view["status"] == wanted,
    )


async def test_the_first_request_wakes_it_and_is_charged_once(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    base_url = platform.endpoints["http"] + "/v1"
    async with (
        asleep(operator, "tiny-lm") as name,
        openai.AsyncOpenAI(base_url=base_url, api_key=customer.key, max_retries=0) as client,
    ):
        listed = {model.id async for model in client.models.list()}
        began = time.monotonic()
        stream = await client.chat.completions.create(
            model=name, messages=PROMPT, max_tokens=8, stream=True
        )
        text = "".join(
            [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        )
        took_s = time.monotonic() - began
        usage = await eventually(
            lambda: operator.usage(customer.tenant_id), within_s=30, what="the charge"
        )

    print(f"woken and answered in {took_s:.2f} s")  # noqa: T201
    assert name in listed
    assert text
    assert took_s < 15
    assert [one["deployment"] for one in usage] == [name]


async def test_who_cannot_wait_is_told_how_long_and_then_served(
    platform: Platform, operator: Operator, customer: Customer
) -> None:
    stranger = await operator.customer(deployments=["simple"])
    async with (
        asleep(operator, "simple") as name,
        grpc.aio.insecure_channel(platform.endpoints["grpc"]) as channel,
    ):
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def ask(key: str, timeout_s: float, model: str = name) -> bytes:
            metadata = (("authorization", f"Bearer {key}"),)
            return await infer(tensors(model), timeout=timeout_s, metadata=metadata)

        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await ask(stranger.key, 30)
        still = await status_of(operator, "asleep", within_s=30)
        await ask(customer.key, 30, "simple")  # so that the gateway has its credit at hand
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(customer.key, LESS_THAN_ANY_WAKING_S)
        told_s = float(dict(refused.value.trailing_metadata() or ())["retry-after"])
        await status_of(operator, "ready", within_s=30)
        # It may sleep again by now; then this wakes it and waits.
        answer = service_pb2.ModelInferResponse.FromString(await ask(customer.key, 30))

    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    assert still["wanted_replicas"] == 0
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert 1 <= told_s < 10
    assert answer.model_name == name


def tensors(name: str) -> bytes:
    """A request for the model that adds and subtracts."""
    message = service_pb2.ModelInferRequest(model_name=name)
    for tensor in ("INPUT0", "INPUT1"):
        message.inputs.add(name=tensor, datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(np.arange(16, dtype="<i4").tobytes())
    return message.SerializeToString()
