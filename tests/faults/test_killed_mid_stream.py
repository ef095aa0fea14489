"""A gateway killed while it streams: free for the customer, listed for the operator.

Its leases come back when it starts again; `./just long-faults` waits for those of
a gateway that never does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import numpy as np
import pytest
from busbar_runtime.platform import Platform
from harness.another_gateway import AnotherGateway, another_gateway
from harness.audit import assert_audit_clean
from harness.operator import Customer, Operator
from harness.polling import eventually
from tritonclient.grpc import service_pb2

GATEWAY = "g3"
TOKENS = 1_000
LONG, SEEDS = 300, 200
"""An answer of so many tokens takes a fifth of a second; most end by themselves before."""
ANSWERS = 100
STREAMS = 2
LEASE_TTL_S = 30
SETTLED_S = 60
PROMPT = "Where does the money live?"
LEFT_BEHIND = """
    SELECT lease_id, closed_at IS NULL AS open, granted_nanos, returned_nanos, posted_nanos
    FROM leases WHERE tenant_id = $1 AND gateway_id = $2 ORDER BY opened_at
"""


def chat(seed: int, tokens: int = TOKENS) -> dict[str, Any]:
    """A request whose answer is the same for the same seed, on one build of the model."""
    return {
        "model": "tiny-lm",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 2,
        "seed": seed,
    }


async def rambling(platform: Platform, operator: Operator) -> int:
    """A seed with which the answer is long."""
    customer = await operator.customer()
    headers = {"authorization": f"Bearer {customer.key}"}
    async with httpx.AsyncClient(
        base_url=platform.endpoints["http"], headers=headers, trust_env=False
    ) as client:
        for seed in range(SEEDS):
            answer = await client.post("/v1/chat/completions", json=chat(seed, LONG), timeout=30)
            if answer.json()["choices"][0]["finish_reason"] == "length":
                return seed
    raise AssertionError(f"none of {SEEDS} answers is long")


@asynccontextmanager
async def chat_stream(
    gateway: AnotherGateway, key: str, seed: int
) -> AsyncIterator[httpx.Response]:
    """An OpenAI stream that has begun."""
    body = {**chat(seed), "stream": True}
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(
            base_url=gateway.http, timeout=30, trust_env=False, verify=False
        ) as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        yield answer


def kserve_request() -> service_pb2.ModelInferRequest:
    """A hundred answers, one every 100 ms."""
    request = service_pb2.ModelInferRequest(model_name="repeat")
    for name, datatype, values in (
        ("IN", "INT32", np.arange(ANSWERS, dtype=np.int32)),
        ("DELAY", "UINT32", np.full(ANSWERS, 100, dtype=np.uint32)),
        ("WAIT", "UINT32", np.zeros(1, dtype=np.uint32)),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[len(values)])
        request.raw_input_contents.append(values.tobytes())
    return request


async def kill_mid_stream(gateway: AnotherGateway, key: str, seed: int) -> str:
    """Kill the gateway with a stream of each API begun; returns the request id of OpenAI's."""
    async with grpc.aio.insecure_channel(gateway.grpc) as channel:
        call: Any = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )(metadata=(("authorization", f"Bearer {key}"),))
        await call.write(kserve_request())
        responses = aiter(call)
        first = await anext(responses)
        rest: list[str] = []
        async with chat_stream(gateway, key, seed) as answer:
            events = aiter(answer.aiter_lines())
            begun = await anext(events)
            await gateway.end()
            with contextlib.suppress(httpx.HTTPError):
                await rest_of(events, rest)
        with pytest.raises(grpc.aio.AioRpcError):
            await rest_of(responses, [])

    assert not first.error_message
    assert begun.startswith("data: {")
    assert "[DONE]" not in "".join(rest), "it was over before the kill"
    return answer.headers["x-request-id"]


async def rest_of(stream: AsyncIterator[Any], into: list[Any]) -> None:
    """What still comes until the stream ends, kept although it may end in an error."""
    async for item in stream:
        into.append(item)  # noqa: PERF401 - what came before an error is wanted, too


async def leases(platform: Platform, customer: Customer) -> list[asyncpg.Record]:
    """This gateway's leases of the customer, the oldest first."""
    database = await asyncpg.connect(platform.endpoints["postgres"])
    try:
        return await database.fetch(LEFT_BEHIND, customer.tenant_id, GATEWAY)
    finally:
        await database.close()


async def assert_free_and_listed(operator: Operator, customer: Customer, interrupted: str) -> None:
    """No charge stands for what was cut off, and the operator sees what it was worked for."""
    until = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    params = {"tenant_id": customer.tenant_id, "until": until}

    async def listed() -> set[str]:
        page = await operator.json("billing", "GET", "/admin/v1/leakage", params=params)
        return {one["request_id"] for one in page["items"] if one["reason"] == "not_charged"}

    cut_off = await eventually(
        listed,
        within_s=SETTLED_S,
        what="leakage of both streams",
        until=lambda found: len(found) >= STREAMS,
    )
    charged = {one["request_id"] for one in await operator.usage(customer.tenant_id)}
    assert interrupted in cut_off
    assert len(cut_off) == STREAMS
    assert not charged & cut_off


@pytest.mark.parametrize(
    "for_ever", [False, pytest.param(True, marks=pytest.mark.long_fault)], ids=["a-moment", "ever"]
)
async def test_what_a_killed_gateway_streamed_is_free_and_its_lease_comes_back(
    platform: Platform,
    operator: Operator,
    tmp_path: Path,
    for_ever: bool,
) -> None:
    seed = await rambling(platform, operator)
    customer = await operator.customer()
    before = await operator.balance(customer.tenant_id)
    async with another_gateway(platform, tmp_path, gateway_id=GATEWAY) as gateway:
        interrupted = await kill_mid_stream(gateway, customer.key, seed)
        [held] = await leases(platform, customer)
        if not for_ever:
            await gateway.start()
            await operator.usage_of(await answered(gateway, customer.key, seed))

        async def given_back() -> asyncpg.Record | None:
            first = (await leases(platform, customer))[0]
            return None if first["open"] else first

        within_s = SETTLED_S + (LEASE_TTL_S if for_ever else 0)
        closed = await eventually(given_back, within_s=within_s, what="the lease comes back")

    assert held["open"]
    assert closed is not None
    assert closed["lease_id"] == held["lease_id"]
    assert closed["granted_nanos"] == closed["returned_nanos"]
    assert closed["posted_nanos"] == 0
    await assert_free_and_listed(operator, customer, interrupted)
    spent = sum(one["amount_nanos"] for one in await operator.usage(customer.tenant_id))
    assert await operator.balance(customer.tenant_id) == before - spent
    await assert_audit_clean(platform)


async def answered(gateway: AnotherGateway, key: str, seed: int) -> str:
    """One request to its end; its id."""
    async with chat_stream(gateway, key, seed) as answer:
        lines = [line async for line in answer.aiter_lines()]
    assert "data: [DONE]" in lines
    return answer.headers["x-request-id"]
