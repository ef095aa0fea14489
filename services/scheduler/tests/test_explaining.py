"""What the admin API says of why replicas are where they are."""

from __future__ import annotations

from harness.polling import eventually
from scheduler_harness import Bus, bundle, living, refusal, scheduling

NODE = "r1.s1.n1"


async def test_a_node_whose_site_holds_as_many_as_it_may_has_no_room_for_one_more(
    bus: Bus,
) -> None:
    neighbour = f"{NODE}b"
    async with scheduling(bus) as running, living(bus, NODE), living(bus, neighbour):
        await running.push(bundle())
        document = {"bundle": "simple", "replicas": 2, "per_site_max": 1}
        await running.put("simple", document)
        limited = await eventually(
            lambda: running.get("/admin/v1/deployments/simple/explain"),
            within_s=30,
            what="a replica",
            until=lambda found: found["placed"] == 1 and found["short"] == 1,
        )
        await running.put("simple", {**document, "replicas": 1, "per_site_max": 2})
        free = await eventually(
            lambda: running.get("/admin/v1/deployments/simple/explain"),
            within_s=30,
            what="the new limit",
            until=lambda found: found["short"] == 0 and found["open_nodes"] > 0,
        )

    assert limited["open_nodes"] == 0
    assert free["open_nodes"] == 1


async def test_a_plan_says_why_and_what_keeps_more_off(bus: Bus) -> None:
    async with scheduling(bus) as running, living(bus, NODE):
        await running.push(bundle())
        await running.put("simple", {"bundle": "simple", "replicas": 2})
        why = await eventually(
            lambda: running.get("/admin/v1/deployments/simple/explain"),
            within_s=30,
            what="a replica",
            until=lambda found: found["placed"] == 1,
        )
        missing = await running.api.get("/admin/v1/deployments/other/explain")

    assert [one["node"] for one in why["places"]] == [NODE]
    assert (why["short"], why["open_nodes"]) == (1, 0)
    assert why["hindrances"] == [
        {"obstacle": "already holds a replica", "nodes": 1, "example": NODE}
    ]
    assert "only 1 could hold it" in why["never"]
    assert refusal(missing) == 404
