"""Placing, routing and failing over on a real NATS."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import datetime, timedelta

from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement
from busbar_messaging import topology
from busbar_scheduler.adapters.work_queues import WorkQueues
from busbar_scheduler.domain.queues import WantedQueues
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

NODE, ELSEWHERE = "r1.s1.n1", "r1.s2.n1"
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
    assert queues == {placement.replicas[0].queue}
    assert topology.is_sealed(placement.replicas[0].queue)
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


def told(placement: NodePlacement | None) -> str:
    """What a node is told that the queue of its one replica is called; "-" where it has none."""
    return placement.replicas[0].queue if placement and placement.replicas else "-"


async def test_a_site_that_gives_a_deployment_up_knows_its_queue_no_longer(bus: Bus) -> None:
    """Two sites hold it, then one: what waits stays, and who stays is told the other name."""
    async with scheduling(bus) as running, living(bus, NODE), living(bus, ELSEWHERE):
        await led(running)
        await running.push(bundle())
        await running.put("simple", {"bundle": "simple", "replicas": 2, "per_site_max": 1})
        jetstream = running.client.jetstream()

        async def names() -> list[str]:
            return [told(await placement_of(running.client, key)) for key in (NODE, ELSEWHERE)]

        first, same = await eventually(
            names, within_s=WITHIN_S, what="both", until=lambda found: "-" not in found
        )
        await jetstream.publish(topology.work_subject("r1", "simple"), b"waiting")
        await running.put("simple", {"bundle": "simple"})
        after = await eventually(  # one placement is written after the other
            names,
            within_s=WITHIN_S,
            what="one, told another name",
            until=lambda found: found.count("-") == 1 and first not in found,
        )
        [second] = [name for name in after if name != "-"]
        queues = await queues_of(running.client, "r1")
        puller = await jetstream.pull_subscribe_bind(second, topology.work_stream("r1").name)
        [waited] = await puller.fetch(1, timeout=WITHIN_S)
        await waited.ack_sync()

    assert first == same
    assert queues == {second}
    assert second != first
    assert waited.data == b"waiting"


async def test_a_name_that_a_site_should_have_forgotten_is_not_given_out_again(bus: Bus) -> None:
    """Also where the region was dark when the site lost the deployment."""
    queue = "r1", "m"
    async with bus.connected("scheduler") as client, bus.connected("provisioner") as observer:
        queues = WorkQueues(client)
        wanted = WantedQueues(frozenset({"r1"}), frozenset({queue}), declared=frozenset({"m"}))
        first = (await queues.ensure(wanted))[queue]
        wanted = replace(wanted, told=frozenset({("r1", first)}))
        same = (await queues.ensure(wanted))[queue]
        dark = replace(wanted, regions=frozenset(), outlived=frozenset({("r1", first)}))
        meanwhile = (await queues.ensure(dark))[queue]
        second = (await queues.ensure(wanted))[queue]
        third = (await queues.ensure(wanted))[queue]  # nobody has been told the second
        left = await queues_of(observer, "r1")

    assert first == same == meanwhile
    assert len({first, second, third}) == 3
    assert left == {third}


async def test_agents_that_know_queues_by_their_deployment_alone_are_served(bus: Bus) -> None:
    """Of the previous release, until the last of them that holds the deployment is upgraded."""
    async with scheduling(bus) as running, living(bus, NODE, reads_queue_names=False) as node:
        await led(running)
        await running.push(bundle())
        await running.put("simple", {"bundle": "simple"})

        async def name() -> str:
            return told(await placement_of(running.client, NODE))

        before = await eventually(
            name, within_s=WITHIN_S, what="its placement", until=lambda found: found != "-"
        )
        plain = await queues_of(running.client, "r1")
        node.status.reads_queue_names = True
        await node.report()
        after = await eventually(name, within_s=WITHIN_S, what="its queue's name", until=bool)
        sealed = await queues_of(running.client, "r1")
        node.status.reads_queue_names = False
        await node.report()
        await eventually(
            lambda: queues_of(running.client, "r1"),
            within_s=WITHIN_S,
            what="the plain name again",
            until=lambda found: found == plain,
        )

    assert (before, plain) == ("", {topology.work_consumer("r1", "simple").durable})
    assert sealed == {after}
    assert topology.is_sealed(after)


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
