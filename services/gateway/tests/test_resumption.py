"""A stream whose node is lost goes on elsewhere: nothing twice, nothing missing, paid once."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.http.generation import Generation, Sampling
from busbar_gateway.adapters.http.kserve_elements import (
    join_bytes_elements,
    split_bytes_elements,
)
from busbar_gateway.domain.attempts import RESUMPTIONS_MAX
from busbar_gateway.domain.failures import ModelFailed, Unavailable
from busbar_gateway.usecases.calls import InferenceCall
from busbar_messaging import topology
from gateway_harness import AUTH, Platform, Say, eventually, pb

Kind = work_pb2.FailureKind
PROMPT = "Count on: "
SAMPLING = Sampling(max_tokens=24, temperature=0)
GAP_MAX_S = 2.0


def letter(at: int) -> str:
    """What the model says at a place of the text, prompt included."""
    return chr(ord("a") + at % 26)


WHOLE = "".join(letter(at) for at in range(len(PROMPT), len(PROMPT) + 24))


def asked(work: work_pb2.InferenceWork) -> tuple[str, dict[str, Any]]:
    """The prompt and the sampling parameters of an attempt."""
    message = pb.ModelInferRequest.FromString(work.payload)
    inputs = {
        tensor.name: raw
        for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    }
    prompt = split_bytes_elements(inputs["text_input"])[0].decode()
    return prompt, json.loads(split_bytes_elements(inputs["sampling_parameters"])[0])


def said(text: str, reason: str = "None") -> bytes:
    answer = pb.ModelInferResponse(model_name="m", model_version="1")
    for name, value in (("text_output", text), ("finish_reason", reason)):
        answer.outputs.add(name=name, datatype="BYTES", shape=[1])
        answer.raw_output_contents.append(join_bytes_elements([value.encode()]))
    return answer.SerializeToString()


@dataclass
class Speaker:
    """Says the alphabet on, a token a chunk, as far as it is let."""

    chunks_max: int = 10**6
    failure: work_pb2.FailureKind.ValueType | None = None
    """What it says after the last chunk it may; None for nothing at all."""
    prompts: list[str] = field(default_factory=list[str])

    async def __call__(self, work: work_pb2.InferenceWork, say: Say) -> None:
        prompt, sampling = asked(work)
        self.prompts.append(prompt)
        most = sampling["max_tokens"]
        for sequence in range(min(most, self.chunks_max)):
            reason = "length" if sequence == most - 1 else "None"
            usage = work_pb2.WorkUsage(input_tokens=len(prompt), output_tokens=sequence + 1)
            payload = said(letter(len(prompt) + sequence), reason)
            frame = work_pb2.WorkChunk(sequence=sequence, payload=payload, usage=usage)
            await say(chunk=frame)
        if most <= self.chunks_max and self.failure is None:
            usage = work_pb2.WorkUsage(input_tokens=len(prompt), output_tokens=most)
            await say(finished=work_pb2.WorkFinished(chunk_count=most, usage=usage))
        elif self.failure is not None:
            await say(failed=work_pb2.WorkFailed(kind=self.failure, reason="told to"))


@dataclass
class Heard:
    """What the customer got, and when."""

    text: str = ""
    at: list[float] = field(default_factory=list[float])
    settled: bool = False

    @property
    def longest_gap_s(self) -> float:
        return max((b - a for a, b in zip(self.at, self.at[1:], strict=False)), default=0.0)


async def listen(platform: Platform, name: str, heard: Heard) -> Generation:
    """Generate as the OpenAI edge does."""
    route = platform.gateway.routes.current(name)
    assert route is not None
    generation = Generation(route, PROMPT, SAMPLING, stream=True)
    call = InferenceCall(
        request_id=secrets.token_bytes(16),
        caller=platform.gateway.keys.authenticate(AUTH[0][1]),
        route=route,
        payload=generation.begin(),
        api="openai.completions",
        received_unix_ns=time.time_ns(),
        deadline=time.monotonic() + 20,
        resumable=generation,
    )
    async with platform.serving.stream(call) as answer:
        async for piece in generation.text(answer):
            heard.text += piece
            if piece:
                heard.at.append(time.monotonic())
        await answer.settle()
        heard.settled = True
    return generation


async def charged_tokens(platform: Platform) -> list[tuple[int, int, int]]:
    await eventually(lambda: platform.gateway.usage.idle)
    usage = await platform.usage()
    return [
        (record.input_tokens, record.output_tokens, record.attempt)
        for record in usage.records
        if record.request_id in usage.charged
    ]


async def test_an_answer_goes_on_where_a_node_handed_it_back(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)
    speaker = Speaker(chunks_max=9, failure=Kind.FAILURE_KIND_UNAVAILABLE)
    agent.behaviour = speaker
    heard = Heard()

    generation = await listen(platform, name, heard)

    assert heard.text == WHOLE
    assert generation.finish_reason == "length"
    assert generation.usage()["total_tokens"] == len(PROMPT) + 24
    assert speaker.prompts == [PROMPT, PROMPT + WHOLE[:9], PROMPT + WHOLE[:18]]
    assert [work.attempt for work in agent.works] == [1, 2, 3]
    assert await charged_tokens(platform) == [(len(PROMPT), 24, 3)]


async def test_a_dead_node_is_a_pause_of_less_than_two_seconds(platform: Platform) -> None:
    name, first = await platform.deploy(decoupled=True)
    first.behaviour = Speaker(chunks_max=9)
    second = await platform.agent(name, "r1.s1.n2")
    second.behaviour = Speaker()
    second.pulling.clear()

    async def replace_first() -> bool:
        if not heard.at:
            return False
        first.pulling.clear()
        second.pulling.set()
        await first.stop()
        return True

    heard = Heard()
    listening = asyncio.create_task(listen(platform, name, heard))
    await eventually(replace_first)
    await listening

    assert heard.text == WHOLE
    assert heard.longest_gap_s <= GAP_MAX_S
    assert [work.attempt for work in second.works] == [2]
    assert await charged_tokens(platform) == [(len(PROMPT), 24, 2)]


async def test_frames_of_the_lost_attempt_do_not_mix_in(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)
    speaker = Speaker(chunks_max=9, failure=Kind.FAILURE_KIND_UNAVAILABLE)

    async def speak(work: work_pb2.InferenceWork, say: Say) -> None:
        await speaker(work, say)
        if work.attempt == 1:
            usage = work_pb2.WorkUsage(input_tokens=1, output_tokens=99)
            await say(chunk=work_pb2.WorkChunk(sequence=9, payload=said("!"), usage=usage))
            await say(finished=work_pb2.WorkFinished(chunk_count=10, usage=usage))

    agent.behaviour = speak
    heard = Heard()

    await listen(platform, name, heard)

    assert heard.text == WHOLE
    assert await charged_tokens(platform) == [(len(PROMPT), 24, 3)]


async def test_an_answer_that_is_all_there_needs_no_other_attempt(platform: Platform) -> None:
    name, agent = await platform.deploy(decoupled=True)
    agent.behaviour = Speaker(chunks_max=24, failure=Kind.FAILURE_KIND_UNAVAILABLE)
    heard = Heard()

    await listen(platform, name, heard)

    assert heard.text == WHOLE
    assert len(agent.works) == 1
    assert await charged_tokens(platform) == [(len(PROMPT), 24, 1)]


@pytest.mark.parametrize(
    ("kind", "failure", "attempts"),
    [
        (Kind.FAILURE_KIND_REJECTED, Unavailable, 2),
        (Kind.FAILURE_KIND_ENGINE_LOST, ModelFailed, 2),
        (Kind.FAILURE_KIND_UNAVAILABLE, Unavailable, 1 + RESUMPTIONS_MAX),
    ],
    ids=["refused", "triton-died-twice", "never-comes-to-an-end"],
)
async def test_what_cannot_be_gone_on_with_is_free(
    platform: Platform,
    kind: work_pb2.FailureKind.ValueType,
    failure: type[Exception],
    attempts: int,
) -> None:
    name, agent = await platform.deploy(decoupled=True)
    speaker = Speaker(chunks_max=1, failure=Kind.FAILURE_KIND_UNAVAILABLE)

    async def speak(work: work_pb2.InferenceWork, say: Say) -> None:
        if work.attempt == 2 or kind == Kind.FAILURE_KIND_ENGINE_LOST:
            speaker.failure = kind
        await speaker(work, say)

    agent.behaviour = speak
    heard = Heard()

    with pytest.raises(failure):
        await listen(platform, name, heard)

    assert len(agent.works) == attempts
    assert not heard.settled
    assert await charged_tokens(platform) == []


async def told_of(platform: Platform, node: str) -> tuple[int, int]:
    """What the gateway tells the scheduler of a node: attempts lost and answers garbled."""
    bucket = await platform.provisioner.jetstream().key_value(topology.GATEWAYS.name)
    entry = await bucket.get(platform.gateway_id)
    status = GatewayStatus.FromString(entry.value or b"")
    found = [one for one in status.troubles if one.node == node]
    return (found[0].lost_count, found[0].garbled_count) if found else (0, 0)


async def test_the_scheduler_hears_of_nodes_that_answer_badly_or_not_at_all(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy(decoupled=True)

    async def garble(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(chunk=work_pb2.WorkChunk(sequence=0, payload=b"garbage"))

    agent.behaviour = garble
    for _ in range(2):
        with pytest.raises(ModelFailed):
            await listen(platform, name, Heard())
    garbled = await eventually_told(platform, agent.node, (0, 2))
    agent.behaviour = Speaker()
    await listen(platform, name, Heard())
    answered = await eventually_told(platform, agent.node, (0, 0))

    async def fall_silent_once(work: work_pb2.InferenceWork, say: Say) -> None:
        if work.attempt == 1:
            await say(started=work_pb2.WorkStarted())
        elif work.attempt == 2:
            noted.append(list(platform.gateway.dispatcher.troubles))
            await Speaker()(work, say)

    noted = list[list[tuple[str, int, int]]]()
    agent.behaviour = fall_silent_once
    await listen(platform, name, Heard())

    assert garbled
    assert answered
    assert noted == [[(agent.node, 1, 0)]]
    assert list(platform.gateway.dispatcher.troubles) == []


async def eventually_told(platform: Platform, node: str, wanted: tuple[int, int]) -> bool:
    async def look() -> bool:
        return await told_of(platform, node) == wanted

    return await eventually(look, within_s=5)
