"""What the watchdog makes of a region that it cannot see."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from time import monotonic

import pytest
from busbar_gateway.domain.attempts import SILENCE_S, UNTAKEN_S
from busbar_gateway.domain.routes import Caller, Manifest, Route
from busbar_gateway.usecases.absence import AbsentNodes
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.pending import Lost, Pending
from busbar_gateway.usecases.watchdog import TICK_S, Watchdog
from gateway_harness import eventually

OWN, FAR = "r1", "r2"


class OneRegionAway:
    """A bus of which one region answers only that it does not, and that late."""

    connected, reconnects = True, 0

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    def epoch(self, region: str) -> str:
        return f"the only stream of {region}"

    def ask_for(self, node: str, absent: Callable[[], None]) -> None:
        """Every node listens."""

    async def taken(self, region: str, sequences: frozenset[int]) -> frozenset[int] | None:
        if region == OWN:
            return frozenset()
        await self.answers.wait()
        return None


def out(region: str, *, published_ago_s: float, silent_s: float = 0.0) -> Pending:
    """A request that the stream has taken; a node has spoken where it fell silent since."""
    route = Route("m", Manifest("m", "1", "tensor", "p"), 0)
    caller = Caller("tenant-1", "key-1")
    deadline = monotonic() + 60
    call = InferenceCall(bytes(16), caller, route, b"", "kserve", 0, deadline)
    pending = Pending(call, False, asyncio.get_running_loop(), region=region, track="m")
    pending.begin(monotonic() - published_ago_s)
    pending.acknowledged(7)
    pending.epoch = f"the only stream of {region}"
    if silent_s:
        pending.attempts.last_sign = monotonic() - silent_s
    return pending


async def test_a_region_that_cannot_be_seen_holds_up_nothing_and_counts_as_taking_nothing() -> None:
    bus, told = OneRegionAway(), list[tuple[Pending, bool]]()
    waits = out(FAR, published_ago_s=2 * UNTAKEN_S)
    silent = out(OWN, published_ago_s=60, silent_s=2 * SILENCE_S)
    young = out(FAR, published_ago_s=0.0)

    def not_taken(pending: Pending, now: float, *, seen: bool) -> None:
        told.append((pending, seen))

    out_there = {bytes((at,)): one for at, one in enumerate((waits, young, silent))}
    watchdog = Watchdog(bus, out_there, OWN, not_taken=not_taken)
    async with asyncio.timeout(5):
        await watchdog.tick(monotonic())
    found_at_once = isinstance(silent.outcome, Lost)
    bus.answers.set()
    await eventually(lambda: told)

    assert found_at_once
    assert told == [(waits, False)]
    assert waits.outcome is None


@pytest.mark.parametrize(
    ("away", "lost_after_s"),
    [(lambda _: True, [0.6]), (lambda ask: ask % 2 == 0, [])],
    ids=["dead", "reconnecting"],
)
async def test_a_node_that_the_bus_says_twice_it_has_lost_is_given_up_soon(
    away: Callable[[int], bool], lost_after_s: list[float]
) -> None:
    work, asks = out(OWN, published_ago_s=1.0, silent_s=TICK_S), itertools.count()
    began = work.attempts.last_sign
    work.attempts.node = "r1.s1.n1"

    def ask_for(_: str, absent: Callable[[], None]) -> None:
        if away(next(asks)):
            absent()

    nodes, lost_at = AbsentNodes(ask_for), list[float]()
    for tick in range(20):
        if work.outcome is None:
            nodes.look([work], began + tick * TICK_S)
            lost_at += [tick * TICK_S] * (work.outcome is not None)

    # A sum of ticks may fall short of its moment by a rounding, and the next look finds it then.
    assert lost_at == pytest.approx(lost_after_s, abs=1.5 * TICK_S)
