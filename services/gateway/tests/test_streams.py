"""Streams from the gRPC edge to their records: what was handed over is charged, nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from busbar_contracts.gateway.v1.usage_pb2 import UsageOutcome, UsageRecord
from busbar_contracts.node.v1 import work_pb2
from gateway_harness import (
    AUTH,
    Behaviour,
    Platform,
    Say,
    chunk,
    eventually,
    inference_of,
    pb,
    request,
    response,
    stream_of,
)
from harness.polling import quickest_s

Kind = work_pb2.FailureKind


def delivering(platform: Platform) -> bool:
    return any(p.attempts.delivering for p in platform.gateway.dispatcher.pending.values())


def waiting_for_chunks(platform: Platform) -> bool:
    """Whether the edge has written all it has and asks for more."""
    return any(p.waited_for for p in platform.gateway.dispatcher.pending.values())


def chunks_come(platform: Platform) -> list[int]:
    """How many chunks of each request have come."""
    return [p.attempts.next_chunk for p in platform.gateway.dispatcher.pending.values()]


async def test_streams_deliver_every_chunk_and_charge_once(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = stream_of(20)
    stream = platform.stream()
    await stream.write(request(name))
    await stream.done_writing()

    answers = [pb.ModelStreamInferResponse.FromString(m) async for m in stream]

    assert [a.error_message for a in answers] == [""] * 20
    assert agent.works[0].stream
    [record] = (await platform.usage()).records
    assert (record.input_tokens, record.output_tokens) == (3, 20)
    assert record.response_bytes == sum(a.infer_response.ByteSize() for a in answers)
    assert record.api == "kserve.grpc.stream"


async def test_only_the_response_marked_final_ends_the_stream(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def marked(work: work_pb2.InferenceWork, say: Say) -> None:
        for sequence in range(3):
            marking = {"triton_final_response": pb.InferParameter(bool_param=sequence == 2)}
            await say(chunk=chunk(work, sequence, parameters=marking))
        usage = work_pb2.WorkUsage(output_tokens=3)
        await say(finished=work_pb2.WorkFinished(chunk_count=3, usage=usage))

    agent.behaviour = marked
    stream = platform.stream()
    await stream.write(request(name))
    seen = [pb.ModelStreamInferResponse.FromString(await stream.read()) for _ in range(3)]
    charged = (await platform.usage()).records

    assert seen[2].infer_response.parameters["triton_final_response"].bool_param
    assert len(charged) == 1  # the last response leaves after the charge
    assert charged[0].output_tokens == 3
    stream.cancel()


async def test_one_stream_carries_many_requests_each_charged_alone(platform: Platform) -> None:
    plain, _ = await platform.deploy()
    decoupled, agent = await platform.deploy(decoupled=True)
    agent.behaviour = stream_of(3)
    stream = platform.stream()
    for number in range(10):
        await stream.write(request(decoupled if number % 2 else plain))
    await stream.write(request("no-such-model"))
    await stream.write(b"\xff\xff")
    await stream.done_writing()

    answers = [pb.ModelStreamInferResponse.FromString(m) async for m in stream]

    errors = sorted(a.error_message for a in answers if a.error_message)
    assert errors == ["the message is not a ModelInferRequest", "there is no model 'no-such-model'"]
    assert len(answers) == 5 + 5 * 3 + 2
    assert len((await platform.usage()).charged) == 10


async def test_an_abandoned_stream_is_charged_for_what_was_delivered(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def two_then_wait(work: work_pb2.InferenceWork, say: Say) -> None:
        for sequence in range(2):
            part = chunk(work, sequence)
            part.compute_us = 500 * (sequence + 1)
            await say(chunk=part)

    agent.behaviour = two_then_wait

    async def until_cancelled() -> float:
        stream = platform.stream()
        await stream.write(request(name))
        await stream.read()
        await stream.read()
        await eventually(lambda: waiting_for_chunks(platform))
        began = time.monotonic()
        stream.cancel()
        await eventually(lambda: agent.last_is_cancelled)
        return time.monotonic() - began

    assert await quickest_s(until_cancelled, under_s=1) < 1

    async def records() -> list[UsageRecord]:
        found = list((await platform.usage()).records)
        return found if len(found) == len({one.request_id for one in agent.works}) else []

    charged = await eventually(records)
    assert {one.outcome for one in charged} == {UsageOutcome.USAGE_OUTCOME_ABANDONED}
    assert {(one.output_tokens, one.compute_us) for one in charged} == {(2, 1000)}
    await eventually(lambda: platform.gateway.usage.idle)


async def test_a_chunk_is_charged_once_it_is_handed_over_though_its_write_goes_on(
    platform: Platform,
) -> None:
    """A client can read a chunk and leave before the server hears that its write has ended."""
    name, agent = await platform.deploy(decoupled=True)
    more_than_a_window = b"x" * 4_000_000

    async def one_large(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(chunk=chunk(work, 0, raw_output_contents=[more_than_a_window]))

    agent.behaviour = one_large
    stream = platform.stream()
    await stream.write(request(name))
    await eventually(lambda: delivering(platform))
    stream.cancel()

    async def records() -> list[object]:
        return list((await platform.usage()).records)

    [record] = await eventually(records)
    assert record.outcome == UsageOutcome.USAGE_OUTCOME_ABANDONED
    assert record.output_tokens == 1


async def test_a_whole_answer_stays_charged_though_its_write_on_a_stream_goes_on(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()

    async def large(work: work_pb2.InferenceWork, say: Say) -> None:
        payload = response(work, raw_output_contents=[b"x" * 4_000_000])
        await say(finished=work_pb2.WorkFinished(payload=payload))

    agent.behaviour = large
    stream = platform.stream()
    await stream.write(request(name))

    async def charged() -> set[bytes]:
        return (await platform.usage()).charged

    await eventually(charged)
    stream.cancel()
    await eventually(lambda: platform.gateway.usage.idle)
    assert len(await charged()) == 1


class Reading:
    """grpcio's context of a call whose client reads as it comes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(AUTH)

    def time_remaining(self) -> None:
        return None

    async def write(self, message: bytes) -> None:
        self.written.append(message)


class LeftAfterOne(Reading):
    """Its client left: each write but the first one fails."""

    async def write(self, message: bytes) -> None:
        if self.written:
            raise grpc.aio.InternalError("Failed execute_batch: SendMessageOperation")
        self.written.append(message)


async def asked(platform: Platform, name: str, context: Any) -> None:
    async def one() -> AsyncIterator[bytes]:
        yield request(name)

    await inference_of(platform.gateway, platform.serving).model_stream_infer(one(), context)


def all_in_the_last(*, then: asyncio.Event | None = None, marked_only: bool = False) -> Behaviour:
    """Two responses, of which the last says that it is; Triton's backends put data there, too."""
    marked = {"triton_final_response": pb.InferParameter(bool_param=True)}

    async def behave(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(chunk=chunk(work, 0))
        last = chunk(work, 1, parameters=marked)
        if marked_only:
            last.payload = pb.ModelInferResponse(parameters=marked).SerializeToString()
        await say(chunk=last)
        if then is not None:
            await then.wait()
        usage = work_pb2.WorkUsage(output_tokens=2)
        await say(finished=work_pb2.WorkFinished(chunk_count=2, usage=usage))

    return behave


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (stream_of(20), UsageOutcome.USAGE_OUTCOME_ABANDONED),
        (all_in_the_last(), UsageOutcome.USAGE_OUTCOME_COMPLETED),
    ],
    ids=["on-the-way", "at-the-last"],
)
async def test_what_was_handed_over_is_charged_when_a_write_fails_before_the_call_is_cancelled(
    platform: Platform, behaviour: Behaviour, outcome: UsageOutcome
) -> None:
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = behaviour
    context = LeftAfterOne()
    await asked(platform, name, context)

    async def records() -> list[object]:
        return list((await platform.usage()).records)

    [record] = await eventually(records)
    assert len(context.written) == 1
    assert record.outcome == outcome
    assert record.output_tokens == 2  # what a failed write took may have been read


@pytest.mark.parametrize("marked_only", [False, True], ids=["with-data", "only-a-mark"])
async def test_who_leaves_before_the_last_response_does_not_pay_for_what_is_in_it(
    platform: Platform, *, marked_only: bool
) -> None:
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = all_in_the_last(marked_only=marked_only)
    usage, context = platform.gateway.usage, Reading()

    customer = asyncio.create_task(asked(platform, name, context))
    while usage.idle and not customer.done():  # then the charge is on its way
        await asyncio.sleep(0)
    customer.cancel()
    await asyncio.gather(customer, return_exceptions=True)
    await eventually(lambda: usage.idle)
    found = await platform.usage()
    charged = [one.output_tokens for one in found.records if one.request_id in found.charged]

    assert len(context.written) == 1
    assert charged == [2 if marked_only else 1]


async def test_what_is_held_back_is_not_charged_to_who_leaves_before_the_work_has_ended(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = all_in_the_last(then=asyncio.Event())
    context = Reading()

    customer = asyncio.create_task(asked(platform, name, context))
    await eventually(lambda: chunks_come(platform) == [2] and waiting_for_chunks(platform))
    customer.cancel()
    await asyncio.gather(customer, return_exceptions=True)
    await eventually(lambda: platform.gateway.usage.idle)
    [record] = (await platform.usage()).records

    assert len(context.written) == 1
    assert record.outcome == UsageOutcome.USAGE_OUTCOME_ABANDONED
    assert record.output_tokens == 1


LOOKS_FINAL = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()


@pytest.mark.parametrize(
    "content",
    [
        {"raw_output_contents": [LOOKS_FINAL]},
        {"parameters": {"triton_final_response": pb.InferParameter(bool_param=True)}},
    ],
    ids=["in-a-tensor", "said-too-early"],
)
async def test_what_looks_like_the_last_response_and_is_not_is_delivered_and_charged(
    platform: Platform, content: dict[str, Any]
) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def three_then_wait(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(chunk=chunk(work, 0, **content))
        await say(chunk=chunk(work, 1))
        await say(chunk=chunk(work, 2))

    agent.behaviour, context = three_then_wait, Reading()

    customer = asyncio.create_task(asked(platform, name, context))
    await eventually(lambda: chunks_come(platform) == [3] and waiting_for_chunks(platform))
    customer.cancel()
    await asyncio.gather(customer, return_exceptions=True)
    await eventually(lambda: platform.gateway.usage.idle)
    [record] = (await platform.usage()).records

    assert len(context.written) == 3
    assert record.output_tokens == 3


async def test_a_stream_that_fails_half_way_is_free_and_says_so(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def break_off(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(chunk=chunk(work, 0))
        await eventually(lambda: delivering(platform))
        await say(failed=work_pb2.WorkFailed(kind=Kind.FAILURE_KIND_UNAVAILABLE))

    agent.behaviour = break_off
    stream = platform.stream()
    await stream.write(request(name))
    await stream.done_writing()

    answers = [pb.ModelStreamInferResponse.FromString(m) async for m in stream]

    assert [bool(a.error_message) for a in answers] == [False, True]
    assert "interrupted" in answers[1].error_message
    assert len(agent.works) == 1
    assert not (await platform.usage()).charged


async def test_what_came_right_before_the_model_failed_is_delivered(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def fail_at_once(work: work_pb2.InferenceWork, say: Say) -> None:
        for sequence in range(3):
            await say(chunk=chunk(work, sequence))
        await say(failed=work_pb2.WorkFailed(kind=Kind.FAILURE_KIND_INTERNAL))

    agent.behaviour = fail_at_once
    stream = platform.stream()
    await stream.write(request(name))
    await stream.done_writing()

    answers = [pb.ModelStreamInferResponse.FromString(m) async for m in stream]

    assert [bool(a.error_message) for a in answers] == [False, False, False, True]
    assert not (await platform.usage()).charged


async def test_a_lost_chunk_is_noticed(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def skip_one(work: work_pb2.InferenceWork, say: Say) -> None:
        if work.attempt == 1:
            await say(chunk=chunk(work, 1))
        else:
            await stream_of(2)(work, say)

    agent.behaviour = skip_one
    stream = platform.stream()
    await stream.write(request(name))
    await stream.done_writing()

    answers = [pb.ModelStreamInferResponse.FromString(m) async for m in stream]

    assert len(answers) == 2
    assert [work.attempt for work in agent.works] == [1, 2]
