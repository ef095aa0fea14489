"""Work that was taken and about which nobody said a word: against whom that is held."""

from __future__ import annotations

import asyncio
import weakref

from busbar_contracts.node.v1.work_pb2 import InferenceWork
from busbar_gateway.usecases.troubles import (
    FORGOTTEN_AFTER_S,
    HEARD_WITHIN_S,
    HELD_FOR_S,
    NodeTroubles,
)
from gateway_harness import FakeAgent, Platform, Say, eventually, request

QUEUE, REGION = "echo", "r1"
MUTE, WELL, IDLE, FAR = "r1.s1.n1", "r1.s1.n2", "r1.s2.n1", "r2.s3.n1"


class Watched(NodeTroubles):
    """Asked at the moment at which something was last heard or lost."""

    def __init__(self) -> None:
        super().__init__(lambda: self.now)
        self.now = 0.0


def lost(troubles: NodeTroubles) -> dict[str, int]:
    return {node: count for node, count, _ in troubles}


def hear(troubles: Watched, now: float, *nodes: str) -> None:
    troubles.now = now
    for node in nodes:
        troubles.heard(node, QUEUE, now)


def swallow(troubles: Watched, seconds: range, *others: str) -> None:
    """Each second one that was published then is lost, and half a second later others are heard."""
    for second in seconds:
        troubles.swallowed(QUEUE, REGION, second)
        hear(troubles, second + 0.5, *others)


def test_a_node_that_goes_on_taking_work_and_says_nothing_is_named() -> None:
    troubles = Watched()
    hear(troubles, 10.0, MUTE, WELL)
    swallow(troubles, range(11, 31), WELL)

    assert lost(troubles) == {MUTE: 20}


def test_whoever_is_heard_again_is_forgiven() -> None:
    troubles = Watched()
    hear(troubles, 10.0, MUTE, WELL)
    swallow(troubles, range(11, 12), WELL)
    held_before = lost(troubles)
    troubles.heard(MUTE, "", 13.0)

    assert held_before == {MUTE: 1}
    assert lost(troubles) == {}


def test_a_gateway_that_hears_nobody_blames_nobody() -> None:
    troubles = Watched()
    hear(troubles, 10.0, MUTE, WELL, FAR)
    swallow(troubles, range(11, 31))

    assert lost(troubles) == {}


def test_who_was_heard_in_between_elsewhere_or_long_ago_is_not_blamed() -> None:
    troubles = Watched()
    hear(troubles, 10.0, IDLE)
    hear(troubles, 10.0 + HEARD_WITHIN_S, MUTE, FAR)
    troubles.heard("r1.s1.n9", "another model", 10.0 + HEARD_WITHIN_S)
    hear(troubles, 11.5 + HEARD_WITHIN_S, WELL)
    troubles.swallowed(QUEUE, REGION, 11.0 + HEARD_WITHIN_S)
    hear(troubles, 12.0 + HEARD_WITHIN_S, WELL)

    assert lost(troubles) == {MUTE: 1}


def test_a_suspicion_that_nothing_adds_to_ends_and_a_suspect_stays_one_until_it_is_heard() -> None:
    troubles = Watched()
    hear(troubles, 10.0, MUTE, WELL)
    swallow(troubles, range(11, 14), WELL)
    at_first = lost(troubles)
    troubles.now += HELD_FOR_S + 0.1
    nothing_more = lost(troubles)
    hear(troubles, 100.0, WELL)
    swallow(troubles, range(101, 103), WELL)

    assert at_first == {MUTE: 3}
    assert nothing_more == {}
    assert lost(troubles) == {MUTE: 2}


class Name(str):
    """One that can be asked whether anybody keeps it still."""

    __slots__ = ("__weakref__",)


def test_who_left_a_queue_long_ago_is_forgotten_unless_something_is_held_against_it() -> None:
    troubles, name = Watched(), Name(IDLE)
    kept = weakref.ref(name)
    hear(troubles, 10.0, name)
    del name
    hear(troubles, 20.0, MUTE, WELL)
    swallow(troubles, range(21, 22), WELL)
    hear(troubles, 21.0 + FORGOTTEN_AFTER_S, FAR)
    held_meanwhile = lost(troubles)
    last = int(22 + FORGOTTEN_AFTER_S)
    swallow(troubles, range(last, last + 1), FAR)

    assert kept() is None
    assert held_meanwhile == {}
    assert lost(troubles) == {MUTE: 1}


async def test_the_scheduler_is_told_who_swallows_work_without_a_word(platform: Platform) -> None:
    name, mute = await platform.deploy()
    well = await platform.agent(name, WELL)

    async def works(agent: FakeAgent) -> None:
        before = len(agent.works)

        async def answered() -> bool:
            await platform.infer(request(name))
            return len(agent.works) > before

        assert await eventually(answered)

    well.pulling.clear()
    await works(mute)
    mute.pulling.clear()
    well.pulling.set()
    await works(well)
    well.pulling.clear()
    mute.pulling.set()

    async def swallow(work: InferenceWork, _: Say) -> None:
        swallowed.append(work.request_id)
        mute.pulling.clear()
        well.pulling.set()

    swallowed = list[bytes]()
    mute.behaviour = swallow
    async with asyncio.timeout(30):
        while not swallowed:  # what it had asked for before is served by the other one
            await platform.infer(request(name))

    assert lost(platform.gateway.dispatcher.troubles) == {mute.node: 1}
