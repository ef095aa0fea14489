"""A site behind a wire of its own, in a network namespace: cut, restored, half-open.

Half-open: packets of one way vanish, and no end is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from busbar_runtime.platform import Platform
from harness.deploying import deploy
from harness.far_site import FarSite, far_site
from harness.figures import Figures
from harness.link import link
from harness.namespace import NEEDED, POSSIBLE, namespace
from harness.trial import Trial, trial

pytestmark = [
    pytest.mark.long_fault,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not POSSIBLE, reason=NEEDED),
]

SERVICES = ["gateway", "billing", "scheduler", "node-agent-s1", "node-agent-s2"]
MODELS = ("echo-fp32", "all-minilm-l6-v2", "tiny-lm")
NODE = "r1.s1.n1"
"""At the site that is hurt; the gateway is in its region, so work goes there by itself."""
STREAM_GAP_MAX_S = 8.0
BACK_MAX_S = 60.0


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
        await far.site.wire.restore()
        back_s = await load.serves(NODE, within_s=120)
    found = await load.judged(f"WAN cut for {cut_s} s", back_s)
    figures.append(found)

    assert_within_bounds(load, found)


async def test_a_wan_that_is_half_open(far: Far, figures: list[Figures]) -> None:
    async with trial(far.platform) as load:
        load.begin()
        await far.site.wire.lose_what_it_is_sent()
        await load.passes(20)
        await far.site.wire.restore()
        back_s = await load.serves(NODE, within_s=120)
    found = await load.judged("nothing to the site for 20 s", back_s)
    figures.append(found)

    assert_within_bounds(load, found)
