"""Work that nobody takes in one region is answered from another one that has a free slot."""

from __future__ import annotations

import asyncio
import time

from busbar_contracts.node.v1 import work_pb2
from busbar_gateway.domain.attempts import UNTAKEN_S
from gateway_harness import OTHER_REGION, FakeAgent, Platform, Say, echo, eventually, request

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
