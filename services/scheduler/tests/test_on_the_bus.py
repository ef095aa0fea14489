"""Placing, routing and failing over on a real NATS."""

from __future__ import annotations

import signal
from datetime import datetime, timedelta

from busbar_messaging import topology
from harness.polling import eventually
from scheduler_harness import (
    Bus,
    FakeNode,
    Running,
    bundle,
    leases_heard,
    living,
    placement_of,
    queues_of,
    route_of,
    scheduling,
)

NODE = "r1.s1.n1"
WITHIN_S = 30
"""Where nothing is promised."""


async def led(running: Running) -> None:
    await eventually(
        lambda: running.get("/admin/v1/plan"),
        within_s=WITHIN_S,
        what="a leader that sees the node",
        until=lambda plan: plan["leading"] and len(plan["nodes"]) > 0,
    )
    await eventually(
        lambda: placement_of(running.client, NODE),
        within_s=WITHIN_S,
        what="the node's first placement",
    )


async def test_a_deployment_is_placed_within_a_second_and_routed_when_ready(bus: Bus) -> None:
    async with (
        scheduling(bus) as running,
        living(bus, NODE) as node,
        leases_heard(running.client) as leases,
    ):
        await led(running)
        pushed = await running.push(bundle())
        answer = await running.put("simple", {"bundle": "simple"})
        placement = await eventually(
            lambda: placement_of(running.client, NODE),
            within_s=WITHIN_S,
            what="the placement",
            until=lambda found: found is not None and len(found.replicas) == 1,
        )
        declared_at = await written_at(running, "deployments", "simple")
        placed_at = await written_at(running, "placements", NODE)
        assert placement is not None
        queues = await queues_of(running.client, "r1")
        await node.serve(placement)
        route = await eventually(
            lambda: route_of(running.client, "simple"),
            within_s=WITHIN_S,
            what="the route",
            until=lambda found: found is not None and len(found.targets) == 1,
        )
        view = await running.get("/admin/v1/deployments/simple")
        stalled = await leases.stalled(declared_at, placed_at)

    assert placed_at - declared_at - stalled < timedelta(seconds=1)
    assert answer["status"] == "progressing"
    assert placement.replicas[0].bundle_digest == pushed["digest"]
    assert placement.fencing_token > 0
    assert topology.work_consumer("r1", "simple").durable in queues
    assert route is not None
    assert (route.targets[0].region, route.targets[0].ready_slots) == ("r1", 8)
    assert (route.model_metadata, route.model_config) == (b"metadata", b"config")
    assert (view["status"], view["ready_replicas"]) == ("ready", 1)


async def written_at(running: Running, bucket: str, key: str) -> datetime:
    """By the server's clock."""
    jetstream = running.client.jetstream()
    message = await jetstream.get_last_msg(f"KV_{bucket}", f"$KV.{bucket}.{key}")
    assert message.time is not None
    return message.time


async def test_a_dead_nodes_route_is_gone_within_five_seconds(bus: Bus) -> None:
    async with (
        scheduling(bus) as running,
        living(bus, NODE) as node,
        leases_heard(running.client) as leases,
    ):
        await led(running)
        await running.push(bundle())
        await running.put("simple", {"bundle": "simple"})
        await serve_when_placed(running, node)

        node.die()
        await eventually(
            lambda: route_of(running.client, "simple"),
            within_s=WITHIN_S,
            what="a route without the dead node",
            until=lambda found: found is not None and not found.targets,
        )
        gone_at = await written_at(running, "routes", "simple")
        placement = await placement_of(running.client, NODE)
        last_heard_at = leases.last_of(NODE)
        stalled = await leases.stalled(last_heard_at, gone_at)

    assert gone_at - last_heard_at - stalled < timedelta(seconds=5)
    assert placement is not None
    assert len(placement.replicas) == 1  # suspect, not evicted


async def serve_when_placed(running: Running, node: FakeNode) -> None:
    placement = await eventually(
        lambda: placement_of(running.client, node.key),
        within_s=WITHIN_S,
        what="the placement",
        until=lambda found: found is not None and len(found.replicas) > 0,
    )
    await node.serve(placement)
    await eventually(
        lambda: route_of(running.client, "simple"),
        within_s=WITHIN_S,
        what="the route",
        until=lambda found: found is not None and len(found.targets) > 0,
    )


async def test_a_withdrawn_deployment_leaves_nothing_behind(bus: Bus) -> None:
    async with scheduling(bus) as running, living(bus, NODE) as node:
        await led(running)
        await running.push(bundle())
        await running.put("simple", {"bundle": "simple"})
        await serve_when_placed(running, node)

        response = await running.api.delete("/admin/v1/deployments/simple")
        await eventually(
            lambda: route_of(running.client, "simple"),
            within_s=WITHIN_S,
            what="no route",
            until=lambda found: found is None,
        )
        await eventually(
            lambda: queues_of(running.client, "r1"),
            within_s=WITHIN_S,
            what="no queue",
            until=lambda found: not found,
        )
        placement = await placement_of(running.client, NODE)

    assert response.status_code == 204
    assert placement is not None
    assert not placement.replicas


async def test_queues_are_back_soon_after_nats_lost_them(bus: Bus) -> None:
    async with scheduling(bus) as running, living(bus, NODE) as node:
        await led(running)
        await running.push(bundle())
        await running.put("simple", {"bundle": "simple"})
        await serve_when_placed(running, node)

        await bus.platform.kill("nats", signal.SIGKILL)
        await bus.platform.wait_ready("nats")
        await eventually(
            lambda: queues_of(running.client, "r1"),
            within_s=WITHIN_S,
            what="the queue again",
            until=bool,
        )
        route = await route_of(running.client, "simple")

    assert route is not None
    assert len(route.targets) == 1  # an outage of the bus makes no node suspect
