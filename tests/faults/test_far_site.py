"""A site behind a wire of its own, in a network namespace: cut, half-open, without power.

Half-open: packets of one way vanish, and no end is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from busbar_runtime.platform import Platform
from harness.audit import busbar
from harness.deploying import deploy
from harness.disk import NEEDED as DISK_NEEDED
from harness.disk import POSSIBLE as DISK_POSSIBLE
from harness.disk import disk
from harness.far_site import FarSite, far_site
from harness.figures import Figures
from harness.link import link
from harness.liveness import kept_alive
from harness.namespace import NEEDED, POSSIBLE, namespace
from harness.operator import Operator
from harness.placements import placements
from harness.polling import eventually
from harness.stories import (
    Story,
    assert_told_as_if_nothing_had_been,
    begin,
    charges,
    telling,
    undisturbed,
)
from harness.trial import Trial, trial

pytestmark = [
    pytest.mark.long_fault,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not POSSIBLE, reason=NEEDED),
]

SERVICES = ["gateway", "billing", "scheduler", "node-agent-s1", "node-agent-s2"]
MODELS = ("echo-fp32", "all-minilm-l6-v2", "tiny-lm")
REGION, NODE = "r1", "r1.s1.n1"
"""At the site that is hurt, the only one of its region; the gateway is in that region, so work goes
there by itself."""
ELSEWHERE = "r2.s2.n1"
STREAM_GAP_MAX_S = 8.0
BACK_MAX_S = 60.0
SENT_MAX_S = 5.0
"""After its power or its link is gone no new work is sent to a site."""
HALF_OPEN_S = 20
WAITED_FOR_S = 60
BEAT_S = 1
"""How long before the fault a node may have been heard last."""
STORYTELLER, STORIES, TOLD_WITHIN_S = "tiny-lm", 4, 60
ALONE = "alone"
DISK_MIB = 768
_STALE, _LINKED = "Stale Connection", "Leafnode connection created for account"


@dataclass(frozen=True)
class Far:
    """A platform of two sites, of which the first is far away."""

    platform: Platform
    site: FarSite


@pytest.fixture(scope="module")
async def far(tmp_path_factory: pytest.TempPathFactory, demo_models: Path) -> AsyncIterator[Far]:
    platform = Platform(tmp_path_factory.mktemp("far"), parts=SERVICES, sites=2)
    async with platform, namespace() as wire:
        wanted = [
            {"name": name, "path": str(demo_models / name), "replicas": 2, "per_site_max": 1}
            for name in MODELS
        ]
        await deploy(platform, wanted)
        hub = urlsplit(platform.endpoints["sites"]["r1/s1"]["hub"]).port or 0
        async with (
            link(lambda: hub, host=wire.here) as relay,
            far_site(platform, "s1", wire, hub_port=hub, link_port=relay.port) as site,
        ):
            async with trial(platform) as begun:
                await begun.serves(NODE, within_s=150)
            yield Far(platform, site)


def assert_within_bounds(trial: Trial, found: Figures) -> None:
    assert trial.log.failed == [], trial.log.failed[:5]
    assert found.stream_gap_s <= STREAM_GAP_MAX_S
    assert found.full_service_s <= BACK_MAX_S
    assert (found.records_lost, found.charged_twice) == (0, 0)


@pytest.mark.parametrize("cut_s", [5, 60], ids=["5s", "60s"])
async def test_a_wan_that_is_cut_and_restored(
    far: Far, figures: list[Figures], cut_s: float
) -> None:
    async with trial(far.platform) as load:
        load.begin()
        await far.site.wire.cut()
        await load.passes(cut_s)
        sent_s = await load.sent_until_s(REGION)
        await far.site.wire.restore()
        back_s = await load.serves(NODE, within_s=120)
    found = await load.judged(f"WAN cut for {cut_s} s", back_s)
    figures.append(found)
    print(f"work was sent there for {sent_s:.1f} s")  # noqa: T201

    assert sent_s <= SENT_MAX_S
    assert_within_bounds(load, found)


async def nothing_to_it(far: Far) -> None:
    await far.site.wire.lose_what_it_is_sent()


async def nothing_from_it(far: Far) -> None:
    await far.site.wire.lose_what_it_sends()


async def nothing_either_way(far: Far) -> None:
    await far.site.wire.cut()


@pytest.mark.parametrize(
    "hurt", [nothing_to_it, nothing_from_it, nothing_either_way], ids=lambda hurt: hurt.__name__
)
async def test_a_wan_that_is_half_open_is_noticed_at_the_site(
    far: Far, figures: list[Figures], hurt: Callable[[Far], Awaitable[None]]
) -> None:
    async with trial(far.platform) as load:
        said_before = far.site.log.stat().st_size
        load.begin()
        await hurt(far)
        gave_up_after_s = await far.site.says(_STALE, since=said_before, within_s=HALF_OPEN_S)
        await load.passes(HALF_OPEN_S - gave_up_after_s)
        sent_s = await load.sent_until_s(REGION)
        said_before = far.site.log.stat().st_size
        await far.site.wire.restore()
        linked_after_s = await far.site.says(_LINKED, since=said_before, within_s=30)
        back_s = await load.serves(NODE, within_s=120)
    found = await load.judged(f"{hurt.__name__.replace('_', ' ')} for {HALF_OPEN_S} s", back_s)
    figures.append(found)
    print(  # noqa: T201
        f"the site's NATS gave the link up after {gave_up_after_s:.1f} s and had it again "
        f"{linked_after_s:.1f} s after it was whole; work was sent there for {sent_s:.1f} s"
    )

    assert sent_s <= SENT_MAX_S
    assert_within_bounds(load, found)


async def test_a_blip_of_ten_seconds_moves_nothing(far: Far, figures: list[Figures]) -> None:
    async with trial(far.platform) as load:
        before = await placements(far.platform)
        load.begin()
        await far.site.wire.cut()
        await load.passes(10)
        await far.site.wire.restore()
        back_s = await load.serves(NODE, within_s=120)
        await load.goes_on()
        after = await placements(far.platform)
    found = await load.judged("a blip of 10 s", back_s)
    figures.append(found)

    assert len(before) == len(far.platform.endpoints["sites"])
    assert after == before
    assert_within_bounds(load, found)


async def test_a_site_that_is_killed_mid_stream_and_starts_again(
    far: Far, figures: list[Figures]
) -> None:
    async with trial(far.platform) as load, telling(far.platform, load.customer) as client:
        whole = await undisturbed(client, STORYTELLER)
        async with asyncio.timeout(TOLD_WITHIN_S), asyncio.TaskGroup() as tasks:
            stories = [begin(client, STORYTELLER, number, tasks) for number in range(STORIES)]
            await until_begun(stories)
            load.begin()
            await far.site.lose_power()
            await far.site.start()
        back_s = await load.serves(NODE, within_s=120)
    found = await load.judged("kill -9 of all of a site", back_s)
    figures.append(found)
    ids = {story.request_id for story in [*whole.values(), *stories]}
    charged = await charges(load.operator, load.customer, ids)

    assert any(charged[story.request_id]["attempt"] > 1 for story in stories), "none was hurt"
    assert_told_as_if_nothing_had_been(stories, whole, charged)
    assert max(story.longest_gap_s for story in stories) <= STREAM_GAP_MAX_S
    assert_within_bounds(load, found)


async def test_a_site_without_power_for_longer_than_nodes_are_waited_for(
    far: Far, figures: list[Figures]
) -> None:
    """What ran there alone runs elsewhere, stays there, and the site gets back its own."""
    operator = Operator(far.platform.endpoints)
    path = f"/admin/v1/deployments/{ALONE}"

    async def at(node: str, *, within_s: float) -> None:
        async def look() -> list[tuple[str, str]]:
            view = await operator.json("scheduler", "GET", path)
            return [(one["node"], one["state"]) for one in view["replica_states"]]

        there = [(node, "ready")]
        await eventually(
            look, within_s=within_s, what=f"{ALONE} at {node}", until=lambda seen: seen == there
        )

    await operator.json("scheduler", "PUT", path, json=alone(pins=["r1/s1"]))
    await at(NODE, within_s=60)
    await operator.json("scheduler", "PUT", path, json=alone(pins=[]))
    async with trial(far.platform) as load:
        await at(NODE, within_s=10)
        load.begin()
        await far.site.lose_power()
        await at(ELSEWHERE, within_s=120)
        moved_s = time.monotonic() - load.fault_at
        sent_s = await load.sent_until_s(REGION)
        moved = await placements(far.platform)
        await far.site.start()
        back_s = await load.serves(NODE, within_s=120)
        await load.goes_on()
        after = await placements(far.platform)
    found = await load.judged(f"a site without power for {moved_s:.0f} s", back_s)
    figures.append(found)
    print(f"work was sent there for {sent_s:.1f} s")  # noqa: T201
    await operator.json("scheduler", "DELETE", path)

    assert sent_s <= SENT_MAX_S
    assert moved_s >= WAITED_FOR_S - BEAT_S
    assert after[ELSEWHERE] == moved[ELSEWHERE], "it moved back"
    assert_within_bounds(load, found)


@pytest.mark.skipif(not DISK_POSSIBLE, reason=DISK_NEEDED)
async def test_a_site_whose_disk_is_full_takes_no_more_than_it_can_account_for(
    far: Far, figures: list[Figures], tmp_path: Path, demo_models: Path
) -> None:
    """Model cache, journal and the site's streams are on one disk, of which nothing is left."""
    operator = Operator(far.platform.endpoints)
    path, node = f"/admin/v1/deployments/{ALONE}", f"/admin/v1/nodes/{NODE.replace('.', '/')}"
    model = str(demo_models / "slow-echo")
    pushed, _, complaint = await busbar(far.platform, "model", "push", model, "--approve")
    assert pushed == 0, complaint

    async def state() -> tuple[str, str]:
        found = (await operator.json("scheduler", "GET", path))["replica_states"]
        return (found[0]["state"], found[0]["reason"]) if found else ("", "")

    async def refusal() -> str:
        return (await operator.json("scheduler", "GET", node))["refusal"]

    async with (
        disk(tmp_path, mib=DISK_MIB) as small,
        far.site.on(small.path, {"BUSBAR_JOURNAL_KIB": "64"}) as monitor,
        kept_alive(monitor, small.path, far.site.restart_bus),
        trial(far.platform) as load,
    ):
        await load.serves(NODE, within_s=150)
        load.begin()
        small.fill()
        body = {"bundle": "slow-echo", "replicas": 1, "pins": ["r1/s1"]}
        await operator.json("scheduler", "PUT", path, json=body)
        no_room = await eventually(
            state, within_s=60, what="no room", until=lambda seen: seen[0] == "failed"
        )
        why = await eventually(refusal, within_s=180, what="the node takes no work")
        await load.goes_on()
        small.free()
        back_s = await load.serves(NODE, within_s=180)
        loaded = await eventually(
            state, within_s=120, what="room", until=lambda seen: seen[0] == "ready"
        )
        again = await refusal()
        await operator.json("scheduler", "DELETE", path)
    found = await load.judged("disk of a site full", back_s)
    figures.append(found)
    print(f"{why}; {no_room[1]}")  # noqa: T201

    assert "cost records wait to be stored at the site" in why
    assert "the disk is full" in no_room[1]
    assert loaded == ("ready", "")
    assert again == ""
    assert_within_bounds(load, found)


def alone(*, pins: list[str]) -> dict[str, Any]:
    return {"bundle": "echo-fp32", "replicas": 1, "pins": pins}


async def until_begun(stories: list[Story]) -> None:
    """Wait until each has got its first pieces."""

    async def begun() -> bool:
        return all(story.at for story in stories)

    await eventually(begun, within_s=TOLD_WITHIN_S, what="the streams have begun")
