"""The leading scheduler is killed, or frozen, replaced and woken, under load: nobody notices."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx
import psutil
import pytest
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement, Route
from busbar_messaging.topology import PLACEMENTS, ROUTES
from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK, PortPool
from harness.another_service import AnotherService, running
from harness.figures import Figures
from harness.hub import as_provisioner
from harness.operator import Operator
from harness.polling import eventually
from harness.steady_load import Clients, steady_load
from harness.trial import Trial, trial

STREAM_GAP_MAX_S = 2.0
LEADS_AGAIN_S = 60


class Standby(AnotherService):
    """A second scheduler."""

    async def token(self) -> int:
        """Its fencing token; 0 when it does not lead or does not answer."""
        headers = {"authorization": f"Bearer {self.environment['BUSBAR_OPERATOR_TOKEN']}"}
        async with httpx.AsyncClient(
            timeout=30, trust_env=False, verify=False, headers=headers
        ) as client:
            api = f"http://{LOOPBACK}:{self.environment['BUSBAR_HTTP_PORT']}"
            try:
                return (await client.get(f"{api}/admin/v1/plan")).json()["fencing_token"]
            except httpx.TransportError:
                return 0


async def tokens(platform: Platform) -> set[int]:
    """Under which tokens all that stands was written."""
    found = set[int]()
    async with as_provisioner(platform) as client:
        jetstream = client.jetstream(timeout=5)
        for bucket, message in ((PLACEMENTS, NodePlacement), (ROUTES, Route)):
            store = await jetstream.key_value(bucket.name)
            for key in await store.keys():
                value = (await store.get(key)).value or b""
                found.add(message.FromString(value).fencing_token)
    return found


@pytest.fixture
async def standby(platform: Platform) -> AsyncIterator[Standby]:
    """Like the platform's own scheduler, and ready before that one is hurt."""

    def make(ports: PortPool) -> Standby:
        http, ops = ports.take(), ports.take()
        return Standby(
            "busbar_scheduler",
            {
                **psutil.Process(platform.pids["scheduler"]).environ(),
                "BUSBAR_SCHEDULER_ID": "standby",
                "BUSBAR_HTTP_PORT": str(http),
                "BUSBAR_OPS_PORT": str(ops),
                "BUSBAR_LOG_LEVEL": "warning",
            },
            f"http://{LOOPBACK}:{ops}",
        )

    async with running(make) as made:
        yield made


@dataclass(frozen=True)
class Woken:
    """What came of a leader that was frozen, replaced and woken."""

    said: str
    led_after_s: float
    """Until all that stands was written by its successor."""
    successor: int
    leader: int
    written: set[int]
    standing: set[int]


async def freeze_and_wake(
    platform: Platform, standby: Standby, goes_on: Callable[[], Awaitable[None]]
) -> Woken:
    """`goes_on` waits for more of the load."""
    said_before, began = len(platform.log("scheduler")), time.monotonic()
    await platform.kill("scheduler", signal.SIGSTOP)
    try:
        successor = await eventually(standby.token, within_s=60, what="a successor")
        written = await eventually(
            lambda: tokens(platform),
            within_s=60,
            what="everything under the successor's token",
            until=lambda found: found == {successor},
        )
        led_after_s = time.monotonic() - began
        await goes_on()
    finally:  # others deploy on this platform
        await platform.kill("scheduler", signal.SIGCONT)

    async def woken() -> str:
        return platform.log("scheduler")[said_before:]

    said = await eventually(
        woken,
        within_s=60,
        what="the woken scheduler to notice",
        until=lambda text: "leadership lost" in text or "deposed" in text,
    )
    await goes_on()
    leader, standing = await standby.token(), await tokens(platform)
    return Woken(said, led_after_s, successor, leader, written, standing)


def assert_it_changed_nothing(woken: Woken) -> None:
    assert '"event": "plan published"' not in woken.said
    assert '"event": "elected"' not in woken.said
    assert (woken.standing, woken.leader) == (woken.written, woken.successor)


async def test_a_stale_leader_that_wakes_up_under_load_changes_nothing_and_costs_nobody(
    platform: Platform, operator: Operator, standby: Standby
) -> None:
    customer = await operator.customer()
    clients = Clients(platform.endpoints["grpc"], platform.endpoints["http"], customer.key)
    async with steady_load(clients, grpc_clients=2, http_clients=1, pause_s=0.05) as log:
        await log.goes_on()
        woken = await freeze_and_wake(platform, standby, log.goes_on)
    await clients.close()

    assert log.failed == [], log.summary()
    assert_it_changed_nothing(woken)


def assert_within_bounds(load: Trial, found: Figures) -> None:
    assert load.log.failed == [], load.log.failed[:5]
    assert found.stream_gap_s <= STREAM_GAP_MAX_S
    assert (found.records_lost, found.charged_twice) == (0, 0)


@pytest.mark.long_fault
async def test_what_a_stale_leader_costs(
    platform: Platform, figures: list[Figures], standby: Standby
) -> None:
    async with trial(platform) as load:
        load.begin()
        woken = await freeze_and_wake(platform, standby, load.goes_on)
    found = await load.judged("stale leader resumed", woken.led_after_s)
    figures.append(found)

    assert_within_bounds(load, found)
    assert_it_changed_nothing(woken)


@pytest.mark.long_fault
async def test_what_a_killed_scheduler_costs(
    platform: Platform, operator: Operator, figures: list[Figures]
) -> None:
    async def token() -> int:
        try:
            return (await operator.json("scheduler", "GET", "/admin/v1/plan"))["fencing_token"]
        except httpx.TransportError:
            return 0

    before = await token()
    async with trial(platform) as load:
        load.begin()
        await platform.kill("scheduler", signal.SIGKILL)
        await eventually(
            token, within_s=LEADS_AGAIN_S, what="it leads again", until=lambda now: now > before
        )
        leads_s = time.monotonic() - load.fault_at
    found = await load.judged("scheduler killed", leads_s)
    figures.append(found)

    assert_within_bounds(load, found)
