"""An answer that the edge cannot read is asked for again, and the node hears of it."""

from __future__ import annotations

import secrets
import time

import pytest
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.model_response import read_response
from busbar_gateway.domain.failures import ModelFailed
from busbar_gateway.usecases.calls import InferenceCall
from gateway_harness import AUTH, Platform, Say, echo, eventually, request

TRIES_MAX = 3


async def ask(platform: Platform, name: str) -> int:
    """As an edge does that reads answers; returns by which attempt it was answered."""
    route = platform.gateway.routes.current(name)
    assert route is not None
    call = InferenceCall(
        request_id=secrets.token_bytes(16),
        caller=platform.gateway.keys.authenticate(AUTH[0][1]),
        route=route,
        payload=request(name),
        api="openai.embeddings",
        received_unix_ns=time.time_ns(),
        deadline=time.monotonic() + 20,
        read=read_response,
    )
    async with platform.serving.infer(call) as answer:
        assert read_response(answer.payload).id == "7"
    await eventually(lambda: platform.gateway.usage.idle)
    [record] = (await platform.usage()).records
    return record.attempt


async def garble(work: work_pb2.InferenceWork, say: Say) -> None:
    await say(finished=work_pb2.WorkFinished(payload=b"garbage"))


async def test_another_attempt_answers_what_could_not_be_read_and_only_that_is_charged(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()

    async def garble_once(work: work_pb2.InferenceWork, say: Say) -> None:
        await (garble if work.attempt == 1 else echo)(work, say)

    agent.behaviour = garble_once

    attempt = await ask(platform, name)

    assert attempt == 2
    assert await eventually(lambda: [one.garbled_deployment for one in agent.cancels] == [name])


async def test_an_answer_that_nobody_can_read_is_an_error_and_free(platform: Platform) -> None:
    name, agent = await platform.deploy()
    agent.behaviour = garble

    with pytest.raises(ModelFailed):
        await ask(platform, name)

    usage = await platform.usage()
    assert [work.attempt for work in agent.works] == list(range(1, TRIES_MAX + 1))
    assert usage.charged == set()
    assert list(platform.gateway.dispatcher.troubles) == [(agent.node, 0, TRIES_MAX)]


async def test_what_two_nodes_answer_so_is_held_against_the_request_and_not_the_second_node(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()

    async def garble_everywhere(work: work_pb2.InferenceWork, say: Say) -> None:
        node = f"{agent.node}-{work.attempt}"
        await say(node=node, finished=work_pb2.WorkFinished(payload=b"garbage"))

    agent.behaviour = garble_everywhere

    with pytest.raises(ModelFailed):
        await ask(platform, name)

    assert [work.attempt for work in agent.works] == [1, 2]
    assert list(platform.gateway.dispatcher.troubles) == [(f"{agent.node}-1", 0, 1)]
