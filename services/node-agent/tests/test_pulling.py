"""The puller on a real bus."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from busbar_messaging.hot_connection import HotConnection
from busbar_messaging.topology import work_consumer
from busbar_node_agent.adapters.puller import WorkPuller
from busbar_node_agent.domain.credits import Credits
from busbar_node_agent.usecases.lane import Lane
from nats.aio.client import Client


async def test_it_stops_though_a_flush_swallows_the_cancellation(
    bus: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.wait_for does so until Python 3.12 when what it waits for ends just then."""
    flushing, over = asyncio.Event(), asyncio.Event()

    async def flush(_: float = 10) -> None:
        flushing.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if over.is_set():
                raise

    triton: Any = None  # nothing arrives for it: there is no such consumer
    lane = Lane("nothing", Credits(1), triton, None, lambda: None)
    puller = WorkPuller(
        bus, HotConnection(bus), work_consumer("r1", "nothing"), lane, lambda *_: None
    )
    puller.start()
    monkeypatch.setattr(bus, "flush", flush)
    await asyncio.wait_for(flushing.wait(), 10)

    stopping = asyncio.create_task(puller.stop())
    ended, _ = await asyncio.wait(
        [stopping], timeout=5
    )  # a timeout's cancellation is swallowed too
    over.set()
    stopping.cancel()

    assert ended
    assert lane.credits.outstanding == 0
