"""What an attempt leaves to the next one: nothing, also where there cannot be a next one yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.adapters.http.generation import Generation, Sampling
from busbar_gateway.domain.failures import DeadlineExceeded
from busbar_gateway.domain.routes import Caller, Canary, Route, Target
from busbar_gateway.usecases.calls import Chunk, InferenceCall
from busbar_gateway.usecases.dispatch import Dispatch
from busbar_gateway.usecases.dispatcher import Dispatcher
from gateway_harness import OTHER_REGION, REGION, eventually
from http_harness import generation_route

OLD, NEW = "sha256:01", "sha256:02"
GARBAGE, READABLE = b"\xff\xff", b"readable"
HERE = (Target(REGION, 4),)


class AnyBus:
    """A bus that takes what it is given, while it is there."""

    def __init__(self) -> None:
        self.connected = True
        self.published: list[work_pb2.InferenceWork] = []
        self.regions: list[str] = []
        self.cancels: list[work_pb2.WorkCancel] = []

    def epoch(self, region: str) -> str:
        return f"the only stream of {region}"

    def publish_cancel(self, node: str, cancel: bytes) -> None:
        self.cancels.append(work_pb2.WorkCancel.FromString(cancel))

    def publish_work(
        self,
        region: str,
        deployment: str,
        work: bytes,
        acknowledged: Callable[[int | Exception], None],
    ) -> None:
        self.regions.append(region)
        self.published.append(work_pb2.InferenceWork.FromString(work))
        acknowledged(len(self.published))


class World:
    """A dispatcher with one route, and a bus that goes away when it is told to."""

    def __init__(self, route: Route) -> None:
        self.bus, self.route = AnyBus(), route
        self.redispatched: list[str] = []
        self.dispatcher = Dispatcher(
            self.bus,
            reply_subject="frames",
            region=REGION,
            shares=lambda _: {},
            current_route=lambda _: self.route,
            redispatched=lambda _deployment, cause: self.redispatched.append(cause),
            readable=lambda payload: payload == READABLE,
        )

    def send(self, *, request: int = 0, within_s: float = 60) -> Dispatch:
        generation = Generation(self.route, "prompt", Sampling(), stream=True)
        deadline = time.monotonic() + within_s
        caller = Caller("tenant-1", "key-1")
        request_id, payload = request.to_bytes(16), generation.begin()
        call = InferenceCall(request_id, caller, self.route, payload, "chat", 0, deadline)
        call.resumable = generation
        dispatch = Dispatch(self.dispatcher, call, streamed=True)
        dispatch.send(None, "")
        return dispatch

    def say(self, attempt: int, node: str = "r1.s1.n1", **frame: Any) -> None:
        self.dispatcher.on_frame(
            work_pb2.WorkFrame(request_id=bytes(16), attempt=attempt, node=node, **frame)
        )

    def say_chunks(self, attempt: int, *payloads: bytes) -> None:
        for sequence, payload in enumerate(payloads):
            self.say(attempt, chunk=work_pb2.WorkChunk(sequence=sequence, payload=payload))

    @property
    def failed(self) -> dict[str, int]:
        """What is held against each version."""
        return {digest: one.failed for digest, one in self.dispatcher.trials.of("chat")}


def with_canary() -> World:
    canary = Canary("chat--canary", NEW, 100, HERE)
    return World(replace(generation_route("chat"), digest=OLD, canary=canary))


@pytest.mark.parametrize("within_s", [0.3, 0.0], ids=["time-is-left", "too-late"])
async def test_a_beginning_that_cannot_be_read_counts_once_and_ends_with_the_deadline(
    within_s: float,
) -> None:
    """Though the bus is away, so that the other version cannot be asked."""
    world = with_canary()
    dispatch = world.send(within_s=within_s)
    world.say_chunks(1, GARBAGE)
    world.bus.connected = False
    answer = asyncio.create_task(dispatch.next_chunk())
    await eventually(lambda: world.failed)

    def ended() -> bool:
        world.dispatcher.expire(time.monotonic())
        return answer.done()

    await eventually(ended)
    with pytest.raises(DeadlineExceeded):
        await answer
    assert world.failed == {NEW: 1}
    assert len(world.bus.cancels) == 1
    assert len(world.redispatched) < 10  # one more after each pause


async def test_what_came_behind_a_beginning_that_cannot_be_read_is_not_handed_out() -> None:
    world = with_canary()
    dispatch = world.send()
    world.say_chunks(1, GARBAGE, READABLE)
    world.bus.connected = False
    answer = asyncio.create_task(dispatch.next_chunk())
    await eventually(lambda: world.redispatched)
    world.say(1, chunk=work_pb2.WorkChunk(sequence=2, payload=READABLE))
    world.bus.connected = True
    await eventually(lambda: len(world.bus.published) == 2)
    of_old = work_pb2.WorkUsage(output_tokens=7)
    world.say(2, chunk=work_pb2.WorkChunk(payload=READABLE, usage=of_old))
    first = await answer

    assert isinstance(first, Chunk)
    assert first.output_tokens == 7
    assert [work.deployment for work in world.bus.published] == ["chat--canary", "chat"]
    assert world.failed == {NEW: 1}


async def test_a_word_from_the_region_that_lost_it_says_nothing_of_the_one_it_goes_to() -> None:
    targets = Target(REGION, 4), Target(OTHER_REGION, 8), Target("r3", 4)
    world = World(replace(generation_route("chat"), targets=targets))
    lost = world.send()
    [pending] = world.dispatcher.pending.values()
    world.dispatcher.withdraw(pending, time.monotonic(), seen=True)
    world.say(1, started=work_pb2.WorkStarted())
    answer = asyncio.create_task(lost.next_chunk())
    await eventually(lambda: len(world.bus.published) == 2)
    world.dispatcher.withdraw(pending, time.monotonic(), seen=True)
    world.send(request=1)
    answer.cancel()

    assert world.bus.regions == [REGION, OTHER_REGION, "r3"]
