"""Scaling by what gateways report, to nothing and back, on a real NATS."""

from __future__ import annotations

import contextlib
from typing import Any

from harness.polling import eventually
from scheduler_harness import (
    Bus,
    Running,
    bundle,
    gateway_on,
    living,
    obeying,
    route_of,
    scheduling,
)

ESTIMATED_MS = 5_000
"""What it takes to load such a bundle, until that is measured."""
NODES = ("r1.s1.n1", "r1.s1.n2")


async def until_ready(running: Running, *replicas: int) -> dict[str, Any]:
    """Wait until so many replicas are ready, gateways know, and the cycle that told them ended."""

    async def look() -> int:
        route = await route_of(running.client, "simple")
        return sum(one.ready_replicas for one in route.targets) if route else -1

    await eventually(
        look,
        within_s=60,
        what=f"{replicas} ready replicas",
        until=lambda found: found in replicas,
    )
    return await eventually(
        lambda: running.get("/admin/v1/deployments/simple"),
        within_s=60,
        what="it says so",
        until=lambda found: found["status"] != "progressing",
    )


async def test_it_sleeps_wakes_grows_and_goes_down_again(bus: Bus) -> None:
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(scheduling(bus))
        nodes = [await stack.enter_async_context(living(bus, key)) for key in NODES]
        gateway = await stack.enter_async_context(gateway_on(bus))
        await stack.enter_async_context(obeying(running, nodes))
        await running.push(bundle())
        wish = {"bundle": "simple", "replicas": 0, "max_replicas": 2, "scale_down_after_s": 3}
        await running.put("simple", wish)
        first = await until_ready(running, 1)  # to learn its tensors
        asleep = await until_ready(running, 0)
        route = await route_of(running.client, "simple")
        gateway.load.unready_count += 1
        await gateway.report()
        awake = await until_ready(running, 1)
        gateway.load.in_flight, gateway.load.queued = 8, 30
        grown = await until_ready(running, 2)
        explained = await running.get("/admin/v1/deployments/simple/explain")
        gateway.load.in_flight = gateway.load.queued = 0
        fewer = await until_ready(running, 1, 0)

    assert route is not None
    assert (route.wakes, route.model_metadata) == (True, b"metadata")
    assert route.wakes_within_ms not in {0, ESTIMATED_MS}, "it was measured"
    statuses = [one["status"] for one in (first, asleep, awake, grown)]
    assert statuses == ["ready", "asleep", "ready", "ready"]
    assert fewer["wanted_replicas"] < 2
    assert grown["wanted_replicas"] == explained["wanted"] == 2
    assert "requests at once, 8 slots a replica" in explained["scaling"]
