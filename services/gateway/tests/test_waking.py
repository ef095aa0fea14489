"""A deployment without replicas that a request brings back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import httpx
import pytest
from busbar_contracts.gateway.v1.status_pb2 import DeploymentLoad, GatewayStatus
from busbar_contracts.scheduler.v1 import plan_pb2
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.domain.waking import Waking, patience_s
from busbar_messaging import topology
from gateway_harness import AUTH, KEY, QUEUE_MAX, Platform, eventually, pb, request, tenant_with
from http_edge import Edge, chat_route, http_edge, saying
from nats.js.errors import KeyNotFoundError

ASLEEP: dict[str, Any] = {
    "slots": 0,
    "wakes": True,
    "wakes_within_ms": 3_000,
    "unready_reason": "it sleeps",
}


HEARTBEAT_MS = topology.HEARTBEAT_INTERVAL.total_seconds() * 1_000
TRIES = 3
"""A busy machine may take as long as a heartbeat once, and hardly three times in a row."""


async def status_of(platform: Platform) -> GatewayStatus:
    """What the gateway last told the scheduler."""
    bucket = await platform.provisioner.jetstream().key_value(topology.GATEWAYS.name)
    try:
        entry = await bucket.get(platform.gateway_id)
    except KeyNotFoundError:
        return GatewayStatus()
    return GatewayStatus.FromString(entry.value or b"")


async def heartbeat(platform: Platform) -> int:
    """Wait for the next one; when it was sent, in ms."""
    before = (await status_of(platform)).reported_unix_ms

    async def beaten() -> int:
        sent = (await status_of(platform)).reported_unix_ms
        return sent if sent > before else 0

    return await eventually(beaten, within_s=30)


async def told_of(platform: Platform, name: str, beaten_at_ms: int) -> tuple[DeploymentLoad, float]:
    """What the scheduler was told of a deployment, and how long after a heartbeat."""

    async def look() -> tuple[DeploymentLoad, float] | None:
        status = await status_of(platform)
        found = next((one for one in status.loads if one.deployment == name), None)
        return (found, status.reported_unix_ms - beaten_at_ms) if found else None

    return await eventually(look, within_s=30)


async def test_the_first_request_waits_and_the_scheduler_hears_of_it_at_once(
    platform: Platform,
) -> None:
    said, after_ms = list[DeploymentLoad](), list[float]()
    answers = list[bool]()
    while len(said) < TRIES and min(after_ms, default=HEARTBEAT_MS) > HEARTBEAT_MS * 0.8:
        name, _ = await platform.deploy(**ASLEEP)
        beaten_at_ms = await heartbeat(platform)
        call = asyncio.create_task(platform.infer(request(name), timeout=60))
        load, later_ms = await told_of(platform, name, beaten_at_ms)
        said.append(load)
        after_ms.append(later_ms)
        assert not call.done()
        await platform.put_route(name, slots=4)
        answers.append((await call).model_name == name)

    assert {(one.queued, one.in_flight, one.unready_count) for one in said} == {(1, 0, 1)}
    assert min(after_ms) < HEARTBEAT_MS * 0.8, "without haste it takes a whole one"
    assert all(answers)
    assert len((await platform.usage()).charged) == len(said)


async def test_who_cannot_wait_that_long_is_told_how_long_and_wakes_it_all_the_same(
    platform: Platform,
) -> None:
    after_ms = list[float]()
    while len(after_ms) < TRIES and min(after_ms, default=HEARTBEAT_MS) > HEARTBEAT_MS * 0.8:
        name, _ = await platform.deploy(**ASLEEP)
        beaten_at_ms = await heartbeat(platform)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await platform.infer(request(name), timeout=2.9)
        said, later_ms = await told_of(platform, name, beaten_at_ms)
        after_ms.append(later_ms)

        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == (
            f"the model '{name}' is not ready yet: it is being loaded; that takes about 3 s"
        )
        assert dict(refused.value.trailing_metadata() or ())["retry-after"] == "3.000"
        assert (said.queued, said.unready_count) == (0, 1)

    assert min(after_ms) < HEARTBEAT_MS * 0.8, "without haste it takes a whole one"


async def put_asleep(edge: Edge, name: str, within_ms: int) -> None:
    """Take its replicas away from a chat model."""
    route = plan_pb2.Route.FromString(chat_route(name))
    del route.targets[:]
    route.wakes, route.wakes_within_ms, route.unready_reason = True, within_ms, "it sleeps"
    await put(edge, name, route.SerializeToString())
    await eventually(lambda: wakes(edge.platform, name))


def wakes(platform: Platform, name: str) -> bool:
    route = platform.gateway.routes.current(name)
    return route is not None and route.wakes_within_s > 0


def serves(platform: Platform, name: str) -> bool:
    route = platform.gateway.routes.current(name)
    return route is not None and route.usable


async def put(edge: Edge, name: str, route: bytes) -> None:
    bucket = await edge.platform.provisioner.jetstream().key_value(topology.ROUTES.name)
    await bucket.put(name, route)


async def test_a_stream_that_waits_for_the_model_is_kept_alive(platform: Platform) -> None:
    async with http_edge(platform, HttpLimits(heartbeat_s=0.1)) as edge:
        name, _ = await edge.chat_model(saying("a", "b"))
        await put_asleep(edge, name, within_ms=3_000)
        body = {"model": name, "messages": [{"role": "user", "content": "go"}], "stream": True}
        async with http(edge) as client:
            listed = {one["id"] for one in (await client.get("/v1/models")).json()["data"]}
            async with client.stream("POST", "/v1/chat/completions", json=body) as streamed:
                lines = streamed.aiter_lines()
                first = [await anext(lines) for _ in range(3)]
                await put(edge, name, chat_route(name))
                rest = [line async for line in lines]

    assert first == [": keep-alive", "", ": keep-alive"]
    assert rest[-2] == "data: [DONE]"
    assert name in listed


async def test_who_waited_in_vain_is_told_when_to_come_back(platform: Platform) -> None:
    async with http_edge(platform, HttpLimits(generation_timeout_s=1.2)) as edge:
        name, _ = await edge.chat_model(saying("a", "b"))
        await put_asleep(edge, name, within_ms=1_000)
        body = {"model": name, "messages": [{"role": "user", "content": "go"}]}
        async with http(edge) as client:
            waited = await client.post("/v1/chat/completions", json=body)

    assert waited.status_code == 503
    assert waited.headers["retry-after"] == "1"
    assert waited.json()["error"]["code"] == "unavailable"
    assert (await platform.usage()).charged == set()


async def test_why_a_model_is_not_ready_is_no_customers_to_read(platform: Platform) -> None:
    async with http_edge(platform, HttpLimits(generation_timeout_s=1.2)) as edge:
        name, _ = await edge.chat_model(saying("a", "b"))
        route = plan_pb2.Route.FromString(chat_route(name))
        del route.targets[:]
        route.unready_reason = 'failed on r1/s1/n1: File "/data/model.py", line 3'
        await put(edge, name, route.SerializeToString())
        await eventually(lambda: not serves(platform, name))
        talk = {"model": name, "messages": [{"role": "user", "content": "go"}]}
        async with http(edge) as client:
            answers = [
                await client.post("/v1/chat/completions", json=talk),
                await client.post("/v1/chat/completions", json={**talk, "stream": True}),
                await client.get(f"/v2/models/{name}/ready"),
            ]

    for answer in answers:
        assert answer.status_code == 503
        assert "is not ready: no replica is ready" in answer.text
        assert "r1/s1/n1" not in answer.text
        assert "/data" not in answer.text


def http(edge: Edge) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{edge.port}",
        headers={"authorization": f"Bearer {KEY}"},
        timeout=10,
        verify=False,
    )


async def test_a_flood_for_a_sleeping_model_stays_within_the_queue(platform: Platform) -> None:
    name, _ = await platform.deploy(**ASLEEP)
    calls = [
        asyncio.create_task(platform.infer(request(name), timeout=30))
        for _ in range(QUEUE_MAX + 20)
    ]
    await eventually(lambda: sum(call.done() for call in calls) >= 20)
    lane = platform.gateway.admissions.lane(name)
    assert lane is not None
    waiting = lane.waiting
    await platform.put_route(name, slots=4)
    results = await asyncio.gather(*calls, return_exceptions=True)

    refused = [one for one in results if isinstance(one, grpc.aio.AioRpcError)]
    assert waiting == QUEUE_MAX
    assert len(refused) == 20
    assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    told_s = [float(dict(one.trailing_metadata() or ())["retry-after"]) for one in refused]
    assert all(1 <= one <= 3 for one in told_s)


async def test_a_model_that_is_not_brought_back_is_refused_again(
    platform: Platform,
) -> None:
    name, _ = await platform.deploy(**ASLEEP)
    call = asyncio.create_task(platform.infer(request(name), timeout=20))
    await eventually(lambda: platform.gateway.admissions.unready_count(name) == 1)
    await platform.put_route(name, slots=0, unready_reason="no node has room for it")

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.details() == f"the model '{name}' is not ready: no replica is ready"


async def test_a_sleeping_model_says_that_it_takes_requests(platform: Platform) -> None:
    name, _ = await platform.deploy(**ASLEEP)
    ready = platform.channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
    asked = pb.ModelReadyRequest(name=name).SerializeToString()

    asleep = pb.ModelReadyResponse.FromString(await ready(asked, metadata=AUTH))
    await platform.put_route(name, slots=0, unready_reason="no node has room for it")
    await eventually(lambda: not wakes(platform, name))
    gone = pb.ModelReadyResponse.FromString(await ready(asked, metadata=AUTH))

    assert (asleep.ready, gone.ready) == (True, False)


@pytest.mark.parametrize("who", ["another tenant", "nobody's money"])
async def test_who_may_not_use_it_wakes_nothing(platform: Platform, who: str) -> None:
    _, auth = await tenant_with(platform, 0 if who == "nobody's money" else 10**9)
    tenants = ["tenant-1"] if who == "another tenant" else []
    name, _ = await platform.deploy(**ASLEEP, tenants=tenants)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await platform.infer(request(name), auth=auth)

    codes = {"another tenant": "NOT_FOUND", "nobody's money": "RESOURCE_EXHAUSTED"}
    assert refused.value.code().name == codes[who]
    assert platform.gateway.admissions.unready_count(name) == 0


def test_the_wait_is_what_it_took_before_less_what_has_passed() -> None:
    waking = Waking()

    assert waking.ready_in_s(0, 20) == 20
    assert waking.asked(100, 20)
    assert not waking.asked(105, 20)
    assert waking.ready_in_s(105, 20) == 15
    assert waking.ready_in_s(125, 20) == 1


def test_a_wait_that_takes_far_too_long_is_not_waited_for_until_nobody_asked_for_a_while() -> None:
    waking, late = Waking(), patience_s(20) + 1
    waking.asked(0, 20)
    waking.asked(60, 20)

    assert not waking.is_overdue(60, 20)
    assert waking.is_overdue(late, 20)
    assert waking.ready_in_s(late, 20) == 20
    assert not waking.asked(late, 20)
    assert waking.asked(3 * late, 20)
    assert not waking.is_overdue(3 * late, 20)
