"""What fails on one node goes to another, and everybody who asks is told why."""

from __future__ import annotations

from typing import Any

from busbar_contracts.node.v1.status_pb2 import ReplicaState
from harness.polling import eventually
from scheduler_harness import Bus, FakeNode, Running, bundle, living, placement_of, scheduling

REASON = "no such GPU"


async def holder(running: Running, nodes: list[FakeNode], name: str) -> FakeNode | None:
    """The node that is told to hold a deployment."""
    for node in nodes:
        placement = await placement_of(running.client, node.key)
        if placement and any(one.deployment == name for one in placement.replicas):
            return node
    return None


async def fail(node: FakeNode, running: Running, name: str, times: int) -> None:
    """Report as an agent does whose other models are well."""
    await node.serve(await placement_of(running.client, node.key))
    for replica in node.status.replicas:
        if replica.deployment == name:
            replica.state, replica.reason = ReplicaState.REPLICA_STATE_FAILED, REASON
            replica.failed_count = times
    await node.report()


async def test_a_replica_that_fails_on_one_node_is_moved_and_both_say_why(bus: Bus) -> None:
    async with (
        scheduling(bus) as running,
        living(bus, "r1.s1.n1") as one,
        living(bus, "r1.s1.n2") as two,
    ):
        nodes = [one, two]
        await running.push(bundle("picky"))
        await running.push(bundle("plain", memory_mb=600))
        for name in ("plain", "picky"):
            await running.put(name, {"bundle": name})

        async def placed() -> FakeNode | None:
            return await holder(running, nodes, "picky")

        first = await eventually(placed, within_s=30, what="a place")
        plain_on = await holder(running, nodes, "plain")
        assert first is not None
        await fail(first, running, "picky", 2)
        await fail(first, running, "picky", 3)
        others = {node.key for node in nodes} - {first.key}

        async def moved() -> str:
            now_on = await placed()
            return now_on.key if now_on else ""

        await eventually(moved, within_s=30, what="another place", until=lambda at: at in others)
        why: dict[str, Any] = await running.get("/admin/v1/deployments/picky/explain")
        shown = await running.get(f"/admin/v1/nodes/{first.key.replace('.', '/')}")
        still_on = await holder(running, nodes, "plain")
        resumed = await running.api.post(f"/admin/v1/nodes/{first.key.replace('.', '/')}/resume")
        await first.report()
        then: dict[str, Any] = await running.get("/admin/v1/deployments/picky/explain")

    assert still_on is plain_on, "what does not fail stays"
    (kept_off,) = why["kept_off"]
    assert (kept_off["node"], kept_off["reason"].endswith(REASON)) == (first.key, True)
    assert 0 < kept_off["for_s"] <= 60
    assert shown["avoids"] == [{**kept_off, "for_s": shown["avoids"][0]["for_s"]}]
    assert {one["obstacle"]: one["example"] for one in why["hindrances"]} == {
        "failed there lately": first.key,
        "already holds a replica": others.pop(),
    }
    assert (resumed.json()["avoids"], then["kept_off"]) == ([], []), "who resumes it says: again"
