"""Requests from the gRPC edge to the record in the USAGE stream, on a real bus."""

from __future__ import annotations

import asyncio
import time

import grpc
import numpy as np
import pytest
from busbar_contracts.gateway.v1.usage_pb2 import UsageOutcome
from busbar_contracts.node.v1 import work_pb2
from gateway_harness import (
    QUEUE_MAX,
    TENANT,
    Platform,
    Say,
    echo,
    eventually,
    failing,
    pb,
    request,
    response,
    show_life,
)
from harness.polling import quickest_s

Kind = work_pb2.FailureKind


async def status_of(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    return failed.value.code()


async def test_an_answer_is_charged_before_it_is_delivered(platform: Platform) -> None:
    name, agent = await platform.deploy()

    answer = await platform.infer(request(name))

    assert answer.id == "7"
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [0, 1, 2, 3]
    usage = await platform.usage()
    [record] = usage.records
    [work] = agent.works
    assert record.request_id == work.request_id
    assert (record.tenant_id, record.key_id, record.deployment) == (TENANT, "key-1", name)
    assert (record.input_tokens, record.output_tokens, record.compute_us) == (3, 2, 42)
    assert (record.api, record.node, record.attempt) == ("kserve.grpc.infer", "r1.s1.n1", 1)
    assert record.request_bytes == len(work.payload) == len(request(name))
    assert record.outcome == UsageOutcome.USAGE_OUTCOME_COMPLETED
    assert not usage.voids


async def test_the_envelope_says_all_that_a_node_needs(platform: Platform) -> None:
    name, agent = await platform.deploy()
    before_ms = time.time() * 1000

    await platform.infer(request(name), timeout=5)

    [work] = agent.works
    assert work.payload == request(name)
    assert (work.attempt, work.tenant_id, work.deployment) == (1, TENANT, name)
    assert work.reply_subject == f"busbar.reply.{platform.gateway_id}"
    assert before_ms + 4000 < work.deadline_unix_ms < before_ms + 6000
    assert not work.stream
    assert not work.traceparent


async def test_many_at_once_are_all_charged_once(platform: Platform) -> None:
    name, _ = await platform.deploy(slots=8)

    answers = await asyncio.gather(*[platform.infer(request(name)) for _ in range(200)])

    assert len(answers) == 200
    usage = await platform.usage()
    assert len(usage.records) == len(usage.charged) == 200
    assert platform.gateway.usage.idle
    lane = platform.gateway.admissions.lane(name)
    assert lane is not None
    assert (lane.in_flight, lane.waiting) == (0, 0)
    assert not platform.gateway.dispatcher.pending


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Kind.FAILURE_KIND_REJECTED, grpc.StatusCode.INVALID_ARGUMENT),
        (Kind.FAILURE_KIND_INTERNAL, grpc.StatusCode.INTERNAL),
        (Kind.FAILURE_KIND_TOO_LARGE, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Kind.FAILURE_KIND_DEADLINE_EXCEEDED, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
async def test_a_final_failure_is_told_apart_and_free(
    platform: Platform, kind: Kind.ValueType, status: grpc.StatusCode
) -> None:
    name, agent = await platform.deploy()
    agent.behaviour = failing(kind)

    assert await status_of(platform.infer(request(name))) is status

    assert len(agent.works) == 1
    assert not (await platform.usage()).charged


async def test_a_node_that_cannot_serve_is_tried_around(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def second_time_lucky(work: work_pb2.InferenceWork, say: Say) -> None:
        first = work.attempt == 1
        await (failing(Kind.FAILURE_KIND_UNAVAILABLE) if first else echo)(work, say)

    agent.behaviour = second_time_lucky
    await platform.infer(request(name))

    assert [work.attempt for work in agent.works] == [1, 2]
    [record] = (await platform.usage()).records
    assert record.attempt == 2


async def test_a_request_that_triton_died_with_has_one_more_chance(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def innocent(work: work_pb2.InferenceWork, say: Say) -> None:
        await (echo if work.engine_losses else failing(Kind.FAILURE_KIND_ENGINE_LOST))(work, say)

    agent.behaviour = innocent
    await platform.infer(request(name))

    assert [work.engine_losses for work in agent.works] == [0, 1]
    assert len((await platform.usage()).charged) == 1


async def test_a_request_that_triton_died_of_twice_is_given_up_and_free(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()
    agent.behaviour = failing(Kind.FAILURE_KIND_ENGINE_LOST)

    assert await status_of(platform.infer(request(name))) is grpc.StatusCode.INTERNAL

    assert [work.engine_losses for work in agent.works] == [0, 1]
    assert not (await platform.usage()).charged


async def test_after_three_tries_the_customer_is_told(platform: Platform) -> None:
    name, agent = await platform.deploy()
    agent.behaviour = failing(Kind.FAILURE_KIND_UNAVAILABLE)

    assert await status_of(platform.infer(request(name))) is grpc.StatusCode.UNAVAILABLE

    assert [work.attempt for work in agent.works] == [1, 2, 3]
    assert not (await platform.usage()).charged


async def test_a_node_that_falls_silent_is_replaced_and_told_to_stop(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def die_first(work: work_pb2.InferenceWork, say: Say) -> None:
        if work.attempt == 1:
            await say(started=work_pb2.WorkStarted())
        else:
            await echo(work, say)

    agent.behaviour = die_first
    began = time.monotonic()
    await platform.infer(request(name))

    assert 3 < time.monotonic() - began < 8
    assert [cancel.attempt for cancel in agent.cancels] == [1]


async def test_work_that_vanishes_after_the_pull_goes_out_again(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def swallow_first(work: work_pb2.InferenceWork, say: Say) -> None:
        if work.attempt > 1:
            await echo(work, say)

    agent.behaviour = swallow_first
    began = time.monotonic()
    await platform.infer(request(name))

    assert 1 < time.monotonic() - began < 8


async def test_work_that_nobody_has_taken_yet_is_left_in_the_stream(platform: Platform) -> None:
    name, agent = await platform.deploy()
    agent.pulling.clear()
    call = asyncio.create_task(platform.infer(request(name)))
    looks = platform.gateway.bus.looks
    await eventually(lambda: platform.gateway.bus.looks >= looks + 3)  # the watchdog has asked
    agent.pulling.set()
    await call

    assert [work.attempt for work in agent.works] == [1]


async def test_frames_of_an_older_attempt_never_count(platform: Platform) -> None:
    name, agent = await platform.deploy()
    late = asyncio.Event()

    async def slow_then_fast(work: work_pb2.InferenceWork, say: Say) -> None:
        if work.attempt == 1:
            await say(failed=work_pb2.WorkFailed(kind=Kind.FAILURE_KIND_UNAVAILABLE))
            await late.wait()
            wrong = pb.ModelInferResponse(id="wrong").SerializeToString()
            await say(finished=work_pb2.WorkFinished(payload=wrong))
            await say(started=work_pb2.WorkStarted())
        else:
            late.set()
            await eventually(lambda: agent.cancels)
            await echo(work, say)

    agent.behaviour = slow_then_fast
    answer = await platform.infer(request(name))

    assert answer.id == "7"
    assert agent.cancels[0].attempt == 1


async def test_a_customer_who_leaves_stops_the_work_within_a_second(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def work_on(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(started=work_pb2.WorkStarted())

    agent.behaviour = work_on

    async def until_cancelled() -> float:
        call = asyncio.create_task(platform.infer(request(name)))
        pending = platform.gateway.dispatcher.pending
        await eventually(lambda: any(one.attempts.node for one in pending.values()))
        began = time.monotonic()
        call.cancel()
        await eventually(lambda: agent.last_is_cancelled)
        return time.monotonic() - began

    assert await quickest_s(until_cancelled, under_s=1) < 1
    assert not (await platform.usage()).charged
    lane = platform.gateway.admissions.lane(name)
    assert lane is not None
    assert lane.in_flight == 0


async def test_a_node_that_nobody_waits_for_is_told_so(platform: Platform) -> None:
    name, agent = await platform.deploy()
    held = asyncio.Event()

    async def speak_late(work: work_pb2.InferenceWork, say: Say) -> None:
        await held.wait()
        await say(started=work_pb2.WorkStarted())

    agent.behaviour = speak_late
    call = asyncio.create_task(platform.infer(request(name)))
    await eventually(lambda: agent.works)
    call.cancel()
    await eventually(lambda: not platform.gateway.dispatcher.pending)
    assert not agent.cancels
    held.set()

    await eventually(lambda: agent.cancels)


async def test_the_deadline_ends_the_request_and_the_work(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def for_ever(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(started=work_pb2.WorkStarted())

    agent.behaviour = for_ever
    # Long enough for a busy machine to begin the work.
    status = await status_of(platform.infer(request(name), timeout=2))

    assert status is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: agent.cancels)
    assert not (await platform.usage()).charged


async def test_more_than_the_slots_wait_and_a_full_queue_refuses(platform: Platform) -> None:
    name, agent = await platform.deploy(slots=2)
    gate = asyncio.Event()
    most = 0

    async def held(work: work_pb2.InferenceWork, say: Say) -> None:
        nonlocal most
        most = max(most, len(platform.gateway.dispatcher.pending))
        await show_life(say, gate)
        await echo(work, say)

    agent.behaviour = held
    calls = [
        asyncio.create_task(platform.infer(request(name), timeout=30))
        for _ in range(QUEUE_MAX + 4 + 20)
    ]
    lane = await eventually(lambda: platform.gateway.admissions.lane(name))
    await eventually(lambda: sum(call.done() for call in calls) >= 20)
    assert (lane.in_flight, lane.waiting) == (4, QUEUE_MAX)
    gate.set()
    results = await asyncio.gather(*calls, return_exceptions=True)

    refused = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
    assert len(refused) == 20
    assert {r.code() for r in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(dict(r.trailing_metadata() or ()).get("retry-after") for r in refused)
    assert most <= 4


async def test_without_a_replica_the_answer_is_unavailable_at_once(platform: Platform) -> None:
    told_to_operators = 'failed on r1/s1/n1: File "/data/model.py", line 3'
    name, _ = await platform.deploy(slots=0, unready_reason=told_to_operators)

    async def until_refused() -> float:
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await platform.infer(request(name))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == f"the model '{name}' is not ready: no replica is ready"
        assert dict(refused.value.trailing_metadata() or ())["retry-after"] == "2.000"
        return time.monotonic() - began

    grace_s = 1.0  # that it would have if it had just been ready
    assert await quickest_s(until_refused, under_s=grace_s) < grace_s


async def test_a_short_absence_of_replicas_is_a_pause(platform: Platform) -> None:
    name, _ = await platform.deploy()
    await platform.infer(request(name))
    await platform.put_route(name, slots=0)
    call = asyncio.create_task(platform.infer(request(name)))
    lane = platform.gateway.admissions.lane(name)
    assert lane is not None
    await eventually(lambda: lane.waiting)
    await platform.put_route(name, slots=4)

    await call


async def test_a_long_absence_of_replicas_is_an_error(platform: Platform) -> None:
    name, _ = await platform.deploy()
    await platform.infer(request(name))
    await platform.put_route(name, slots=0)
    began = time.monotonic()

    assert await status_of(platform.infer(request(name))) is grpc.StatusCode.UNAVAILABLE

    assert 0.9 < time.monotonic() - began < 8


async def test_unary_answers_that_came_too_late_are_not_delivered_twice(platform: Platform) -> None:
    name, agent = await platform.deploy()

    async def twice(work: work_pb2.InferenceWork, say: Say) -> None:
        await echo(work, say)
        await say(finished=work_pb2.WorkFinished(payload=response(work)))

    agent.behaviour = twice
    for _ in range(5):
        await platform.infer(request(name))

    assert len((await platform.usage()).records) == 5
