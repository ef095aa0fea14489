"""Work that nobody takes in one region is answered from another one that has a free slot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.domain.attempts import UNTAKEN_S
from busbar_gateway.domain.failures import Unavailable
from busbar_gateway.domain.routes import Caller, Manifest, Route, Target
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.dispatch import Dispatch
from busbar_gateway.usecases.dispatcher import Dispatcher
from gateway_harness import (
    OTHER_REGION,
    REGION,
    FakeAgent,
    Platform,
    Say,
    echo,
    eventually,
    failing,
    request,
)

FAR_NODE = f"{OTHER_REGION}.s2.n1"
WITHIN_S = UNTAKEN_S + 3.0
"""With the watchdog's look each half second, and time to spare on a busy machine."""


async def both_regions(platform: Platform) -> tuple[str, FakeAgent]:
    """A deployment with slots in both regions of which only the far one takes work."""
    name, _ = await platform.deploy(agent=False, slots=4, other_slots=4)
    return name, await platform.agent(name, node=FAR_NODE)


async def test_it_is_answered_from_the_other_region_and_charged_once(platform: Platform) -> None:
    name, far = await both_regions(platform)
    began = time.monotonic()
    await asyncio.gather(*(platform.infer(request(name)) for _ in range(3)))
    took_s = time.monotonic() - began
    records = (await platform.usage()).records

    assert UNTAKEN_S < took_s < WITHIN_S
    assert [record.node for record in records] == [FAR_NODE] * 3
    assert len({record.request_id for record in records}) == 3
    assert {work.attempt for work in far.works} == {2}


async def test_the_next_requests_do_not_wait_there_again(platform: Platform) -> None:
    name, far = await both_regions(platform)
    await platform.infer(request(name))
    await platform.infer(request(name))

    assert [work.attempt for work in far.works] == [2, 1]


async def test_it_waits_while_no_other_region_has_a_free_slot(platform: Platform) -> None:
    name, _ = await platform.deploy(agent=False, slots=4)
    waiting = asyncio.create_task(platform.infer(request(name)))
    out = platform.gateway.dispatcher.pending
    await eventually(lambda: out)
    (pending,) = out.values()
    long_ago = pending.attempts.published + 2 * UNTAKEN_S
    await eventually(lambda: time.monotonic() > long_ago)
    near = await platform.agent(name)
    await waiting

    assert [work.attempt for work in near.works] == [1]


async def test_whoever_takes_the_old_attempt_is_told_to_stop(platform: Platform) -> None:
    name, far = await both_regions(platform)
    answer = asyncio.Event()

    async def slow(work: work_pb2.InferenceWork, say: Say) -> None:
        await say(started=work_pb2.WorkStarted())
        await answer.wait()
        await echo(work, say)

    far.behaviour = slow
    waiting = asyncio.create_task(platform.infer(request(name)))
    await eventually(lambda: far.works)
    near = await platform.agent(name)
    near.behaviour = slow
    await eventually(lambda: near.cancels)
    answer.set()
    await waiting
    (record,) = (await platform.usage()).records

    assert [work.attempt for work in near.works] == [1]
    assert [cancel.attempt for cancel in near.cancels] == [1]
    assert (record.node, record.attempt) == (FAR_NODE, 2)


async def test_a_retry_stays_at_home_where_its_own_slot_is_free_again(platform: Platform) -> None:
    name, near = await platform.deploy(slots=1, other_slots=4)
    left = [failing(work_pb2.FAILURE_KIND_UNAVAILABLE), echo]

    async def at_last(work: work_pb2.InferenceWork, say: Say) -> None:
        await left.pop(0)(work, say)

    near.behaviour = at_last
    far = await platform.agent(name, node=FAR_NODE)
    await platform.infer(request(name))

    assert [work.attempt for work in near.works] == [1, 2]
    assert far.works == []


class NearStreamGone:
    """A bus on which the stream of one region takes nothing."""

    connected = True

    def __init__(self) -> None:
        self.published_to: list[str] = []

    def epoch(self, region: str) -> str:
        return ""

    def publish_cancel(self, node: str, cancel: bytes) -> None:
        """Nobody has anything to cancel."""

    def publish_work(
        self,
        region: str,
        deployment: str,
        work: bytes,
        acknowledged: Callable[[int | Exception], None],
    ) -> None:
        self.published_to.append(region)
        gone = Unavailable("no stream takes work in this region")
        acknowledged(gone if region == REGION else 1)


async def test_what_a_regions_stream_refuses_and_what_follows_go_elsewhere() -> None:
    targets = Target(REGION, 4), Target(OTHER_REGION, 4)
    route = Route("m", Manifest("m", "1", "tensor", "p"), 0, targets)
    bus = NearStreamGone()
    dispatcher = Dispatcher(
        bus,
        reply_subject="frames",
        region=REGION,
        shares=lambda _: {REGION: 1.0, OTHER_REGION: 1.0},
        current_route=lambda _: route,
        redispatched=lambda _deployment, _cause: None,
        readable=bool,
    )
    finished = work_pb2.WorkFinished(payload=b"x")
    for at in (1, 2):
        caller, deadline = Caller("tenant-1", "key-1"), time.monotonic() + 60
        call = InferenceCall(bytes((at,)), caller, route, b"", "kserve", 0, deadline)
        dispatch = Dispatch(dispatcher, call, streamed=False)
        dispatch.send(None, "")
        answer = asyncio.create_task(dispatch.finished())
        await eventually(lambda: bus.published_to[-1] == OTHER_REGION)
        frame = work_pb2.WorkFrame(
            request_id=call.request_id,
            attempt=dispatch.attempt,
            node=FAR_NODE,
            finished=finished,
        )
        dispatcher.on_frame(frame)
        await answer
        dispatch.close()

    assert bus.published_to == [REGION, OTHER_REGION, OTHER_REGION]
