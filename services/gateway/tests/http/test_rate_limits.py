"""Limits, suspension and waiting as customers meet them, over HTTP and gRPC on a real bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import openai
import pytest
from busbar_contracts.billing.v1.tenants_pb2 import PriorityBand, TenantPolicy
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_messaging import topology
from gateway_harness import AUTH, KEY, TENANT, Platform, Say, eventually, request
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from http_edge import Edge, http_edge, saying
from prometheus_client import REGISTRY

PROMPT: list[Any] = [{"role": "user", "content": "go on"}]


@pytest.fixture
async def edge(platform: Platform) -> AsyncIterator[Edge]:
    async with http_edge(platform, HttpLimits(heartbeat_s=0.1)) as edge:
        yield edge
    await put_policy(platform, TenantPolicy())


async def put_policy(platform: Platform, policy: TenantPolicy) -> None:
    """Say it as billing does, and wait until the gateway has heard."""
    bucket = await platform.provisioner.jetstream().key_value(topology.TENANTS.name)
    policy.tenant_id = TENANT
    await bucket.put(TENANT, policy.SerializeToString())
    wanted = (policy.requests_per_minute, policy.tokens_per_minute, policy.suspended_reason)

    def heard() -> bool:
        now = platform.gateway.policies.current(TENANT)
        return (now.requests_per_minute, now.tokens_per_minute, now.suspended_reason) == wanted

    await eventually(heard)


def http(edge: Edge) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{edge.port}",
        headers={"authorization": f"Bearer {KEY}"},
        timeout=10,
        verify=False,
    )


async def test_every_answer_says_what_is_left_and_a_refusal_when_to_come_back(edge: Edge) -> None:
    name, _ = await edge.chat_model(saying("a", "b"))
    await put_policy(edge.platform, TenantPolicy(requests_per_minute=2, tokens_per_minute=6000))
    body = {"model": name, "messages": PROMPT, "max_tokens": 8}
    async with http(edge) as client:
        listed = await client.get("/v1/models")
        first = await client.post("/v1/chat/completions", json=body)
        wrong = await client.post("/v1/chat/completions", json={"model": name})
        async with client.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True}
        ) as streamed:
            await streamed.aread()
        refused = await client.post("/v1/chat/completions", json=body)
        stranger = await client.get("/v1/models", headers={"authorization": "Bearer bb_no"})

    for answer, remaining in ((listed, "2"), (first, "1"), (wrong, "1"), (streamed, "0")):
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == remaining
        assert answer.headers["x-ratelimit-limit-tokens"] == "6000"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) <= 6000
    assert listed.headers["x-ratelimit-reset-requests"] == "0ms"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert (first.status_code, wrong.status_code, streamed.status_code) == (200, 400, 200)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests a minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 31
    assert 0 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert stranger.status_code == 401
    assert not [name for name in stranger.headers if name.startswith("x-ratelimit")]


async def test_kserve_answers_say_what_is_left_and_a_refusal_when_to_come_back(edge: Edge) -> None:
    name, _ = await edge.platform.deploy()
    await put_policy(edge.platform, TenantPolicy(requests_per_minute=2, tokens_per_minute=6000))
    address = f"/v2/models/{name}"
    body = {"inputs": [{"name": "IN", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]}]}
    keyed = {"idempotency-key": name}
    async with http(edge) as client:
        described = await client.get(address)
        first = await client.post(f"{address}/infer", json=body, headers=keyed)
        wrong = await client.post(f"{address}/infer", json={})
        second = await client.post(f"{address}/infer", json=body)
        repeated = await client.post(f"{address}/infer", json=body, headers=keyed)
        refused = await client.post(f"{address}/infer", json=body)
        live = await client.get("/v2/health/live")

    said = [(described, "2"), (first, "1"), (wrong, "1"), (second, "0"), (repeated, "0")]
    for answer, remaining in [*said, (refused, "0")]:
        assert answer.headers.get_list("x-ratelimit-limit-requests") == ["2"]
        assert answer.headers.get_list("x-ratelimit-remaining-requests") == [remaining]
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert answer.headers["x-ratelimit-limit-tokens"] == "6000"
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) <= 6000
        assert answer.headers["x-ratelimit-reset-tokens"].endswith("s")
    assert [answer.status_code for answer, _ in said] == [200, 200, 400, 200, 200]
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 31
    assert not [name for name in live.headers if name.startswith("x-ratelimit")]


async def test_without_limits_nothing_is_said_of_any(edge: Edge) -> None:
    await put_policy(edge.platform, TenantPolicy())
    async with http(edge) as client:
        answers = [await client.get(path) for path in ("/v1/models", "/v2")]

    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_tokens_used_are_counted_and_the_sdk_sees_a_rate_limit(edge: Edge) -> None:
    name, _ = await edge.chat_model(saying("a", "b", "c"))
    await put_policy(edge.platform, TenantPolicy(tokens_per_minute=300))
    client = edge.openai()
    await client.chat.completions.create(model=name, messages=PROMPT, max_tokens=8)

    async def ask_until_refused() -> openai.RateLimitError | None:
        for _ in range(60):
            try:
                await client.chat.completions.create(model=name, messages=PROMPT, max_tokens=8)
            except openai.RateLimitError as error:
                return error
        return None

    refused = await ask_until_refused()
    assert refused is not None
    assert refused.code == "rate_limit_exceeded"
    assert "300 tokens a minute" in str(refused)


async def test_grpc_says_when_to_retry_in_details_that_clients_can_read(edge: Edge) -> None:
    name, _ = await edge.platform.deploy()
    await put_policy(edge.platform, TenantPolicy(requests_per_minute=1))
    await edge.platform.infer(request(name))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await edge.platform.infer(request(name))

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refused.value.trailing_metadata() or ())
    status = Status.FromString(trailing["grpc-status-details-bin"])  # pyright: ignore[reportArgumentType]
    name, retry = ErrorInfo(), RetryInfo()
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert status.message == refused.value.details()
    assert status.details[0].Unpack(name)
    assert (name.reason, name.domain) == ("RATE_LIMIT_EXCEEDED", "busbar")
    assert status.details[1].Unpack(retry)
    assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 60


async def test_more_than_the_slots_of_the_account_at_once_are_refused(edge: Edge) -> None:
    name, agent = await edge.platform.deploy()
    release = asyncio.Event()

    async def wait(work: work_pb2.InferenceWork, say: Say) -> None:
        await release.wait()
        await say(finished=work_pb2.WorkFinished(payload=b""))

    agent.behaviour = wait
    await put_policy(edge.platform, TenantPolicy(max_in_flight=2))
    await eventually(lambda: edge.platform.gateway.policies.current(TENANT).max_in_flight == 2)
    held = [asyncio.ensure_future(edge.platform.infer(request(name))) for _ in range(2)]
    await eventually(lambda: len(agent.works) == 2)

    with pytest.raises(grpc.aio.AioRpcError, match="2 requests at a time"):
        await edge.platform.infer(request(name))
    release.set()
    await asyncio.gather(*held)
    await edge.platform.infer(request(name))


async def test_a_suspended_account_is_told_why_and_served_again_afterwards(edge: Edge) -> None:
    name, _ = await edge.platform.deploy()
    await put_policy(edge.platform, TenantPolicy(suspended_reason="late payer"))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await edge.platform.infer(request(name), auth=AUTH)
    await put_policy(edge.platform, TenantPolicy())

    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert refused.value.details() == "this account is suspended: late payer"
    await edge.platform.infer(request(name))


async def test_a_stream_that_waits_for_its_turn_is_kept_alive(edge: Edge) -> None:
    name, _ = await edge.chat_model(saying("a", "b"))
    body = {"model": name, "messages": PROMPT, "stream": True}
    gateway = edge.platform.gateway
    async with http(edge) as client:
        await client.post("/v1/chat/completions", json={**body, "stream": False})
        lane = gateway.admissions.lane(name)
        assert lane is not None
        taken, lane.in_flight = lane.in_flight, lane.in_flight + 1000
        async with client.stream("POST", "/v1/chat/completions", json=body) as streamed:
            lines = streamed.aiter_lines()
            first = [await anext(lines) for _ in range(3)]
            assert lane.waiting == 1
            lane.in_flight = taken
            rest = [line async for line in lines]

    assert streamed.status_code == 200
    assert first[0] == first[2] == ": keep-alive"
    assert rest[-2] == "data: [DONE]"


async def test_the_wait_for_a_turn_shows_in_the_metrics(edge: Edge) -> None:
    name, _ = await edge.platform.deploy()

    def counted() -> float:
        value = REGISTRY.get_sample_value(
            "busbar_gateway_queue_seconds_count", {"band": "interactive"}
        )
        return value or 0.0

    await put_policy(
        edge.platform, TenantPolicy(band=PriorityBand.PRIORITY_BAND_INTERACTIVE, weight=3)
    )
    await eventually(lambda: edge.platform.gateway.policies.current(TENANT).weight == 3)
    before = counted()
    await edge.platform.infer(request(name))

    assert counted() == before + 1
