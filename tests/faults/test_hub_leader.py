"""Three NATS servers in a region, and the one that leads is killed.

Nothing that a request needs may be missing for longer than an election takes, and an election
may cost nobody a request: gateways publish again until a leader is there, agents ask anew, and
nobody takes the silence of the bus for that of the nodes (docs/decisions/0046).
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from busbar_messaging.topology import LEASES, USAGE, work_stream
from busbar_runtime.platform import Platform
from harness.deploying import deploy
from harness.figures import Figures
from harness.hub import as_provisioner, leader_of, let_lead, server_of
from harness.trial import Trial, trial

pytestmark = [pytest.mark.long_fault, pytest.mark.timeout(600)]

SERVICES = ["gateway", "billing", "scheduler", "node-agent-s1"]
MODELS = ("echo-fp32", "all-minilm-l6-v2", "tiny-lm")
ELECTED_MAX_S = 18.0
"""NATS elects after 4 to 9 s, and once more where the votes were split."""
STREAM_GAP_MAX_S = BACK_MAX_S = ELECTED_MAX_S + 1.0
DEADLINE_S = 30.0
"""Of each request: longer than an election, so that none may fail for it."""


@pytest.fixture(scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, demo_models: Path
) -> AsyncIterator[Platform]:
    home = tmp_path_factory.mktemp("hub")
    async with Platform(home, parts=SERVICES, sites=1, hub_servers=3) as running:
        await deploy(running, [{"name": one, "path": str(demo_models / one)} for one in MODELS])
        yield running


async def outlives(platform: Platform, load: Trial, server: str, what: str) -> Figures:
    """Kill a server, let it come back, and say what that cost."""
    load.begin()
    await platform.kill(server, signal.SIGKILL)
    await platform.wait_ready(server)
    await load.passes(15)
    return await load.judged(f"leader of {what}, one of three, killed", load.quiet_until_s())


@pytest.mark.parametrize(
    "stream", [USAGE.name, work_stream("r1").name, f"KV_{LEASES.name}"], ids=str.lower
)
async def test_a_leader_that_is_killed(
    platform: Platform, figures: list[Figures], stream: str
) -> None:
    async with trial(platform, deadline_s=DEADLINE_S) as load:
        async with as_provisioner(platform) as client:
            leader = await leader_of(client, stream)
        found = await outlives(platform, load, leader, stream)
    figures.append(found)

    assert_within_bounds(load, found)


async def test_a_server_that_leads_everything_and_has_the_services_connected(
    platform: Platform, figures: list[Figures]
) -> None:
    async with trial(platform, deadline_s=DEADLINE_S) as load:
        server = server_of(platform, "gateway")
        async with as_provisioner(platform) as client:
            led = await let_lead(client, server)
        found = await outlives(platform, load, server, "everything")
    figures.append(found)

    assert led > len(MODELS)
    assert_within_bounds(load, found)


def assert_within_bounds(load: Trial, found: Figures) -> None:
    assert load.log.failed == [], load.log.failed[:5]
    assert found.stream_gap_s <= STREAM_GAP_MAX_S
    assert found.full_service_s <= BACK_MAX_S
    assert (found.records_lost, found.charged_twice) == (0, 0)
