"""A deployment with two versions: each takes its share, the old one makes up for the new one."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import grpc
import pytest
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus, VersionOutcomes
from busbar_contracts.node.v1 import work_pb2
from busbar_contracts.scheduler.v1 import plan_pb2
from busbar_gateway.domain.failures import ModelFailed
from busbar_gateway.usecases.calls import InferenceCall
from busbar_messaging import topology
from gateway_harness import (
    AUTH,
    REGION,
    Behaviour,
    FakeAgent,
    Platform,
    Say,
    echo,
    eventually,
    failing,
    make_route,
    pb,
    request,
    stream_of,
)

OLD, NEW = "sha256:01", "sha256:02"


def canary(name: str, percent: int) -> plan_pb2.CanaryRoute:
    target = plan_pb2.RouteTarget(region=REGION, ready_slots=4, ready_replicas=1)
    track = f"{name}--canary"
    return plan_pb2.CanaryRoute(track=track, bundle_digest=NEW, percent=percent, targets=[target])


async def two_versions(
    platform: Platform,
    behaviour: Behaviour | None,
    *,
    percent: int = 100,
    served: bool = True,
    **route: Any,
) -> tuple[str, FakeAgent, FakeAgent]:
    """A deployment, the agent of its old version and that of the new one."""
    name, old = await platform.deploy(bundle_digest=OLD)
    spec = topology.work_consumer(REGION, f"{name}--canary")
    await platform.provisioner.jetstream().add_consumer(spec.stream, spec.config())
    new = FakeAgent(platform.provisioner)
    if served:
        new = await platform.agent(f"{name}--canary", "r1.s1.n2")
        new.behaviour = behaviour
    await offer(platform, name, percent, **route)
    return name, old, new


async def offer(platform: Platform, name: str, percent: int, **route: Any) -> None:
    bucket = await platform.provisioner.jetstream().key_value(topology.ROUTES.name)
    both = make_route(name, bundle_digest=OLD, canary=canary(name, percent), **route)
    await bucket.put(name, both)

    def offered() -> bool:
        route = platform.gateway.routes.current(name)
        return bool(route and route.canary and route.canary.percent == percent)

    await eventually(offered)


async def reported(platform: Platform, name: str, answers: int) -> dict[str, VersionOutcomes]:
    """What the gateway's heartbeat says of both versions, once it counts so many answers."""
    bucket = await platform.provisioner.jetstream().key_value(topology.GATEWAYS.name)
    entry = await bucket.get(platform.gateway_id)
    status = GatewayStatus.FromString(entry.value or b"")
    found = [one for load in status.loads if load.deployment == name for one in load.versions]
    complete = sum(one.answered_count for one in found) == answers
    return {one.bundle_digest: one for one in found} if complete else {}


async def test_each_version_takes_its_share_under_its_own_name(platform: Platform) -> None:
    name, old, new = await two_versions(platform, None, percent=50)

    answers = await asyncio.gather(*(platform.infer(request(name)) for _ in range(60)))
    found = await eventually(lambda: reported(platform, name, 60))

    assert 0 < len(new.works) < 60
    assert len(old.works) + len(new.works) == 60
    assert {answer.model_name for answer in answers} == {name}
    assert {work.deployment for work in new.works} == {f"{name}--canary"}
    assert found[NEW].answered_count == found[NEW].timed_count == len(new.works)


async def nothing(work: work_pb2.InferenceWork, say: Say) -> None:
    """Triton's Python backend answers so where its numpy is of the wrong version."""
    del work
    await say(finished=work_pb2.WorkFinished(payload=b""))


FAILURES: dict[str, tuple[Behaviour, int]] = {
    "internal": (failing(work_pb2.FAILURE_KIND_INTERNAL), 1),
    "unavailable": (failing(work_pb2.FAILURE_KIND_UNAVAILABLE), 1),
    "rejected": (failing(work_pb2.FAILURE_KIND_REJECTED), 1),
    "empty": (nothing, 1),
    "not found": (failing(work_pb2.FAILURE_KIND_NOT_FOUND), 0),
    "drained": (failing(work_pb2.FAILURE_KIND_UNAVAILABLE, told_to_leave=True), 0),
}
"""What the new version does, and how much of it is held against it."""


async def test_what_the_new_version_fails_the_old_one_answers(platform: Platform) -> None:
    name, old, new = await two_versions(platform, None)
    blamed, counted = dict[str, int](), 0

    for behaviour, (new.behaviour, _) in FAILURES.items():
        answer = await platform.infer(request(name))
        assert answer.model_name == name
        failed = {digest: one.failed for digest, one in platform.gateway.dispatcher.trials.of(name)}
        blamed[behaviour], counted = failed[NEW] - counted, failed[NEW]

    assert blamed == {behaviour: count for behaviour, (_, count) in FAILURES.items()}
    assert [work.attempt for work in new.works] == [1] * len(FAILURES)
    assert [work.attempt for work in old.works] == [2] * len(FAILURES)
    assert len((await platform.usage()).charged) == len(FAILURES)


async def test_a_canary_that_alone_serves_gets_another_try(platform: Platform) -> None:
    left = [failing(work_pb2.FAILURE_KIND_UNAVAILABLE), echo]

    async def at_last(work: work_pb2.InferenceWork, say: Say) -> None:
        await left.pop(0)(work, say)

    name, old, new = await two_versions(platform, at_last, slots=0)
    answer = await platform.infer(request(name))

    assert answer.model_name == name
    assert [work.attempt for work in new.works] == [1, 2]
    assert old.works == []


async def test_a_canary_that_alone_serves_and_answers_nothing_fails_at_once(
    platform: Platform,
) -> None:
    name, _, new = await two_versions(platform, nothing, slots=0)

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await platform.infer(request(name))

    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert [work.attempt for work in new.works] == [1]


async def test_a_request_begun_before_there_was_a_canary_stays_with_its_version(
    platform: Platform,
) -> None:
    name, old, new = await two_versions(platform, None, percent=0)

    async def meanwhile(work: work_pb2.InferenceWork, say: Say) -> None:
        await offer(platform, name, 100)
        old.behaviour = None
        await failing(work_pb2.FAILURE_KIND_UNAVAILABLE)(work, say)

    await platform.put_route(name, bundle_digest=OLD)
    await eventually(lambda: platform.gateway.routes.current(name).canary is None)  # pyright: ignore[reportOptionalMemberAccess]
    old.behaviour = meanwhile
    await platform.infer(request(name))

    assert [work.attempt for work in old.works] == [1, 2]
    assert new.works == []


async def garbage(work: work_pb2.InferenceWork, say: Say) -> None:
    del work
    await say(chunk=work_pb2.WorkChunk(sequence=0, payload=b"\xff\xff"))
    await say(finished=work_pb2.WorkFinished(chunk_count=1))


def failed_by(platform: Platform, name: str) -> dict[str, int]:
    return {digest: one.failed for digest, one in platform.gateway.dispatcher.trials.of(name)}


async def test_a_stream_that_the_new_version_begins_unreadably_is_the_old_ones(
    platform: Platform,
) -> None:
    name, old, new = await two_versions(platform, garbage, decoupled=True)
    old.behaviour = stream_of(3)
    stream = platform.stream()
    await stream.write(request(name))
    await stream.done_writing()

    answers = [pb.ModelStreamInferResponse.FromString(message) async for message in stream]

    assert [answer.error_message for answer in answers] == [""] * 3
    assert (len(new.works), len(old.works)) == (1, 1)
    assert failed_by(platform, name)[NEW] == 1


async def test_a_chunk_that_the_edge_cannot_read_is_held_against_the_version_not_the_node(
    platform: Platform,
) -> None:
    name, _, _ = await two_versions(platform, stream_of(3), decoupled=True)
    route = platform.gateway.routes.current(name)
    assert route is not None
    call = InferenceCall(
        request_id=secrets.token_bytes(16),
        caller=platform.gateway.keys.authenticate(AUTH[0][1]),
        route=route,
        payload=request(name),
        api="openai.chat",
        received_unix_ns=time.time_ns(),
        deadline=time.monotonic() + 20,
    )

    async def read_in_vain() -> None:
        async with platform.serving.stream(call) as answer:
            await anext(aiter(answer))
            raise ModelFailed("no text in it")

    with pytest.raises(ModelFailed):
        await read_in_vain()

    assert failed_by(platform, name) == {NEW: 1}
    assert list(platform.gateway.dispatcher.troubles) == []


async def test_input_that_both_refuse_is_the_customers_fault(platform: Platform) -> None:
    refuse = failing(work_pb2.FAILURE_KIND_REJECTED, "not like this")
    name, old, new = await two_versions(platform, refuse)
    old.behaviour = refuse

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await platform.infer(request(name))
    new.behaviour = None
    await platform.infer(request(name))
    found = await eventually(lambda: reported(platform, name, 1))

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert {digest: one.failed_count for digest, one in found.items()} == {NEW: 0}


async def test_what_waits_for_a_version_that_leaves_goes_to_the_other(platform: Platform) -> None:
    name, old, _ = await two_versions(platform, None, served=False, other_slots=4)
    asked = asyncio.create_task(platform.infer(request(name), timeout=8))
    await eventually(lambda: platform.gateway.dispatcher.pending)

    await offer(platform, name, 0, other_slots=4)
    answer: Any = await asked  # its region did nothing wrong: it stays there

    assert answer.model_name == name
    assert [work.attempt for work in old.works] == [2]
