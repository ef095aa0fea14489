"""Answers of plain models on one stream: in the order of the requests, though made in parallel."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.grpc import turns
from gateway_harness import Platform, Say, echo, eventually, request, stream_of
from stream_client import Client, asked_as, held, numbered


async def test_answers_come_in_the_order_of_their_requests_errors_too(platform: Platform) -> None:
    name, agent = await platform.deploy()
    go_on = asyncio.Event()
    agent.behaviour = held(1, until=go_on)
    client = Client(platform)
    asked = [numbered(name, 1), numbered(name, 2), b"\xff\xff", numbered(name, 4)]
    call = client.ask(*asked, request("no-such-model"), numbered(name, 6))
    await eventually(lambda: {asked_as(work) for work in agent.works} == {"1", "2", "4", "6"})
    before = client.ids
    go_on.set()
    await call

    no_request, no_model = "the message is not a ModelInferRequest", "there is no model"
    assert before == []  # all four were worked on, side by side
    assert client.ids == ["1", "2", no_request, "4", f"{no_model} 'no-such-model'", "6"]
    assert len((await platform.usage()).charged) == 4


async def test_many_models_of_any_speed_are_answered_in_order(platform: Platform) -> None:
    names, agents = zip(*[await platform.deploy() for _ in range(3)], strict=True)

    async def some_slower(work: work_pb2.InferenceWork, say: Say) -> None:
        for _ in range(int(asked_as(work)) * 7 % 5):
            await asyncio.sleep(0)
        await echo(work, say)

    for agent in agents:
        agent.behaviour = some_slower
    client = Client(platform)
    await client.ask(*(numbered(names[n % 3], n) for n in range(100)))

    assert client.ids == [str(n) for n in range(100)]


async def test_what_a_decoupled_model_says_waits_for_nobody_and_nobody_for_it(
    platform: Platform,
) -> None:
    plain, agent = await platform.deploy()
    decoupled, other = await platform.deploy(decoupled=True)
    go_on, ends = asyncio.Event(), asyncio.Event()
    agent.behaviour = held(1, until=go_on)

    async def two_then_wait(work: work_pb2.InferenceWork, say: Say) -> None:
        if asked_as(work) == "4":
            await ends.wait()
        await stream_of(2)(work, say)

    other.behaviour = two_then_wait
    client = Client(platform)
    call = client.ask(
        numbered(plain, 1), numbered(decoupled, 2), numbered(plain, 3), numbered(decoupled, 4),
        numbered(plain, 5),
    )  # fmt: skip
    await eventually(lambda: client.ids == ["2", "2"])
    go_on.set()
    await eventually(lambda: client.ids == ["2", "2", "1", "3", "5"])
    ends.set()
    await call

    assert client.ids == ["2", "2", "1", "3", "5", "4", "4"]


async def test_who_leaves_does_not_pay_for_answers_that_waited_for_their_turn(
    platform: Platform,
) -> None:
    name, agent = await platform.deploy()
    agent.behaviour = held(1, until=asyncio.Event())
    client = Client(platform)
    call = client.ask(*(numbered(name, n) for n in (1, 2, 3)))
    await eventually(partial(recorded, platform, 2))
    at_risk = platform.gateway.usage.idle
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: platform.gateway.usage.idle)

    assert not at_risk  # a killed gateway would take them back, too
    assert client.answers == []
    assert (await platform.usage()).charged == set()


async def test_a_charge_stands_only_when_those_before_it_are_written(platform: Platform) -> None:
    name, agent = await platform.deploy()
    client = Client(platform)
    client.reads.clear()
    call = client.ask(numbered(name, 1), numbered(name, 2))
    await eventually(partial(recorded, platform, 2))
    second_at_risk = not platform.gateway.usage.idle
    client.reads.set()
    await call

    assert second_at_risk
    assert client.uncertain[1:] == [False]
    assert len((await platform.usage()).charged) == 2
    assert len(agent.works) == 2


async def test_beyond_a_bound_answers_are_charged_when_their_turn_comes(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "CHARGED_AHEAD_MAX", 2)
    name, agent = await platform.deploy()
    client = Client(platform)
    for already in (0, 8):  # what was charged ahead is forgotten when it has left
        go_on = asyncio.Event()
        agent.behaviour = held(1, until=go_on)
        call = client.ask(*(numbered(name, n) for n in range(1, 9)))
        await eventually(lambda: len(platform.gateway.dispatcher.pending) == 1)
        await eventually(partial(recorded, platform, already + 2))
        go_on.set()
        await call
        assert len((await platform.usage()).charged) == already + 8

    assert client.ids == [str(n) for n in range(1, 9)] * 2


async def recorded(platform: Platform, count: int) -> bool:
    found = len((await platform.usage()).records)
    assert found <= count
    return found == count
