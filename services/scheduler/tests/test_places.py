"""Cordon, drain and resume, on a real NATS with nodes that carry out what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus, NodeTrouble
from busbar_messaging import topology
from busbar_scheduler.domain.fleet import Order
from busbar_scheduler.domain.orders import Told
from harness.polling import eventually
from nats.aio.client import Client
from scheduler_harness import Bus, Running, bundle, living, obeying, placement_of, scheduling

FIRST, SECOND = "r1.s1.n1", "r1.s2.n1"
NODE_PATH = "/admin/v1/nodes/r1/s1/n1"


async def held(running: Running, node: str) -> list[str]:
    placement = await placement_of(running.client, node)
    return [one.deployment for one in placement.replicas] if placement else []


async def post(running: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await running.api.post(path, json=body)
    response.raise_for_status()
    return response.json()


async def test_a_drained_node_empties_once_its_replacement_serves(bus: Bus) -> None:
    async with (
        scheduling(bus) as running,
        living(bus, FIRST) as first,
        living(bus, SECOND) as second,
    ):
        await running.push(bundle())
        async with obeying(running, [first]):
            await running.put("simple", {"bundle": "simple", "pins": ["r1/s1/n1"]})
            await eventually(
                lambda: running.get("/admin/v1/deployments/simple"),
                within_s=30,
                what="the first replica",
                until=lambda view: view["status"] == "ready",
            )
            await running.put("simple", {"bundle": "simple"})
            told = await post(running, f"{NODE_PATH}/drain", {"grace_s": 600, "reason": "fans"})
            # The second node is told to load, and the first serves until it has.
            await eventually(
                lambda: held(running, SECOND),
                within_s=30,
                what="the replacement",
                until=lambda there: there == ["simple"],
            )
            still = await held(running, FIRST)
            async with obeying(running, [second]):
                empty = await eventually(
                    lambda: running.get(NODE_PATH),
                    within_s=30,
                    what="an empty node",
                    until=lambda view: view["empty"],
                )
            placement = await placement_of(running.client, FIRST)
            resumed = await post(running, f"{NODE_PATH}/resume", {})

    assert told["order"] | {"given_unix_ms": 0} == {
        "order": "drain",
        "given_unix_ms": 0,
        "grace_ms": 600_000,
        "reason": "fans",
    }
    assert still == ["simple"]
    assert empty["replicas"] == []
    assert placement is not None
    assert placement.drain_within_ms == 300_000
    assert resumed["order"]["order"] == "serve"


async def test_what_a_node_that_fell_silent_holds_is_not_known(bus: Bus) -> None:
    async with scheduling(bus) as running:
        async with living(bus, FIRST) as first:
            await running.push(bundle())
            async with obeying(running, [first]):
                await running.put("simple", {"bundle": "simple"})
                heard = await eventually(
                    lambda: running.get(NODE_PATH),
                    within_s=30,
                    what="a replica",
                    until=lambda view: [one["state"] for one in view["replicas"]] == ["ready"],
                )
        silent = await eventually(
            lambda: running.get(NODE_PATH),
            within_s=30,
            what="silence",
            until=lambda view: view["health"] == "suspect",
        )

    assert heard["health"] == "ok"
    assert [(one["deployment"], one["state"]) for one in silent["replicas"]] == [
        ("simple", "unknown")
    ]


async def test_a_cordoned_site_keeps_what_it_has_and_gets_nothing_new(bus: Bus) -> None:
    async with scheduling(bus) as running, living(bus, FIRST) as first:
        await running.push(bundle())
        async with obeying(running, [first]):
            await running.put("simple", {"bundle": "simple"})
            await eventually(
                lambda: held(running, FIRST), within_s=30, what="a replica", until=bool
            )
            site = await post(running, "/admin/v1/sites/r1/s1/cordon", {"reason": "storm"})
            late = await running.put("late", {"bundle": "simple"})
            kept = await held(running, FIRST)
            await post(running, "/admin/v1/sites/r1/s1/resume", {})
            await eventually(
                lambda: held(running, FIRST),
                within_s=30,
                what="the late one too",
                until=lambda there: there == ["late", "simple"],
            )

    assert (site["order"]["order"], site["order"]["reason"]) == ("cordon", "storm")
    assert "is cordoned" in late["reason"]
    assert kept == ["simple"]


async def test_a_sites_power_cap_is_kept_and_shown(bus: Bus) -> None:
    body = {"power_cap_w": 5_000, "energy_nanos_per_kwh": 80_000_000, "feeder": "north"}
    async with scheduling(bus) as running:
        put = await running.api.put("/admin/v1/sites/r1/s9?new=true", json=body)
        again = await running.api.put("/admin/v1/sites/r1/s9", json=body)
        shown = await running.get("/admin/v1/sites/r1/s9")
        listed = await running.get("/admin/v1/sites")
        lifted = await running.api.put("/admin/v1/sites/r1/s9", json=body | {"power_cap_w": None})

    assert put.json() == again.json() == shown
    assert lifted.json() == shown | {"power_cap_w": None}
    assert listed["items"] == [shown]
    assert {name: shown[name] for name in body} == body


BAD_ORDERS: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "/admin/v1/nodes/r1/s1/n7/drain", {}, 404),
    ("POST", "/admin/v1/sites/r1/s7/cordon", {}, 404),
    ("POST", "/admin/v1/nodes/r1/s1/n7/drain", {"grace_s": 0}, 422),
    ("POST", "/admin/v1/nodes/r1/s1/n7/drain", {"grace_s": 1e9}, 422),
    ("PUT", "/admin/v1/sites/r1/s7", {"power_cap_w": 5_000}, 404),
    ("PUT", "/admin/v1/sites/r1/s1?new=true", {"power_cap_w": -1}, 422),
    ("PUT", "/admin/v1/sites/r1/s1?new=true", {"power_cap_w": 0}, 422),
    ("PUT", "/admin/v1/sites/r1/s1?new=true", {"feeder": "a b"}, 422),
    ("PUT", "/admin/v1/sites/r1/s1?new=true", {"feeder": "none"}, 422),
    ("PUT", "/admin/v1/sites/R1/s1?new=true", {}, 422),
]


async def test_bad_orders_change_nothing(bus: Bus) -> None:
    async with scheduling(bus) as running:
        statuses = [
            (await running.api.request(method, path, json=body)).status_code
            for method, path, body, _ in BAD_ORDERS
        ]
        listed = await running.get("/admin/v1/sites")

    assert statuses == [status for *_, status in BAD_ORDERS]
    assert listed["items"] == []


@pytest.mark.parametrize(
    ("order", "after_ms", "means"),
    [
        (Order.CORDON, 10**9, Order.CORDON),
        (Order.DRAIN, 0, Order.DRAIN),
        (Order.DRAIN, 4_999, Order.DRAIN),
        (Order.DRAIN, 5_000, Order.VACATE),
    ],
)
def test_half_of_a_grace_is_for_replacements(order: Order, after_ms: int, means: Order) -> None:
    assert Told(order, 1_000, 10_000).at(1_000 + after_ms) is means


async def test_a_node_that_answers_nobody_is_kept_out_until_it_is_resumed(bus: Bus) -> None:
    async with (
        scheduling(bus) as running,
        living(bus, FIRST) as first,
        living(bus, SECOND) as second,
        bus.connected("gateway") as gateway,
    ):
        await running.push(bundle())
        async with obeying(running, [first, second]), complaining(gateway, FIRST):
            await running.put("simple", {"bundle": "simple", "pins": ["r1/s1/n1"]})
            await running.put("simple", {"bundle": "simple"})
            view = await eventually(
                lambda: running.get(NODE_PATH),
                within_s=60,
                what="the node is in quarantine and empty",
                until=lambda view: view["order"]["order"] == "quarantine" and view["empty"],
            )
            moved = await eventually(
                lambda: held(running, SECOND),
                within_s=30,
                what="the replica is elsewhere",
                until=lambda there: there == ["simple"],
            )
        resumed = await post(running, f"{NODE_PATH}/resume", {})

    assert "fell silent" in view["order"]["reason"]
    assert moved == ["simple"]
    assert resumed["order"]["order"] == "serve"


@contextlib.asynccontextmanager
async def complaining(gateway: Client, node: str) -> AsyncIterator[None]:
    """A gateway that loses one more request at the node every half a second."""
    bucket = await gateway.jetstream().key_value(topology.GATEWAYS.name)

    async def complain() -> None:
        for lost in itertools.count():
            trouble = NodeTrouble(node=node, lost_count=lost)
            status = GatewayStatus(gateway_id="g1", region="r1", troubles=[trouble])
            await bucket.put("g1", status.SerializeToString())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 0.5)
            if over.is_set():
                return

    over = asyncio.Event()
    task = asyncio.create_task(complain())
    try:
        yield
    finally:
        over.set()
        await task
