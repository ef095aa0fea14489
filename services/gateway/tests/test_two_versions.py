"""A deployment with two versions: each takes its share, the old one makes up for the new one."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus, VersionOutcomes
from busbar_contracts.node.v1 import work_pb2
from busbar_contracts.scheduler.v1 import plan_pb2
from busbar_messaging import topology
from gateway_harness import (
    REGION,
    Behaviour,
    FakeAgent,
    Platform,
    Say,
    eventually,
    failing,
    make_route,
    request,
)

OLD, NEW = "sha256:01", "sha256:02"


def canary(name: str, percent: int) -> plan_pb2.CanaryRoute:
    target = plan_pb2.RouteTarget(region=REGION, ready_slots=4, ready_replicas=1)
    track = f"{name}--canary"
    return plan_pb2.CanaryRoute(track=track, bundle_digest=NEW, percent=percent, targets=[target])


async def two_versions(
    platform: Platform, behaviour: Behaviour | None, *, percent: int = 100, served: bool = True
) -> tuple[str, FakeAgent, FakeAgent]:
    """A deployment, the agent of its old version and that of the new one."""
    name, old = await platform.deploy(bundle_digest=OLD)
    spec = topology.work_consumer(REGION, f"{name}--canary")
    await platform.provisioner.jetstream().add_consumer(spec.stream, spec.config())
    new = FakeAgent(platform.provisioner)
    if served:
        new = await platform.agent(f"{name}--canary", "r1.s1.n2")
        new.behaviour = behaviour
    await offer(platform, name, percent)
    return name, old, new


async def offer(platform: Platform, name: str, percent: int) -> None:
    bucket = await platform.provisioner.jetstream().key_value(topology.ROUTES.name)
    await bucket.put(name, make_route(name, bundle_digest=OLD, canary=canary(name, percent)))

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
    name, old, _ = await two_versions(platform, None, served=False)
    asked = asyncio.create_task(platform.infer(request(name), timeout=8))
    await eventually(lambda: platform.gateway.dispatcher.pending)

    await offer(platform, name, 0)
    answer: Any = await asked

    assert answer.model_name == name
    assert [work.attempt for work in old.works] == [2]
