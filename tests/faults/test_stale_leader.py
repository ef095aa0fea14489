"""The leading scheduler is frozen under load, replaced, and wakes up: nobody notices."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement, Route
from busbar_messaging.topology import PLACEMENTS, ROUTES
from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK, PortPool
from harness.another_service import AnotherService, running
from harness.hub import as_provisioner
from harness.operator import Operator
from harness.polling import eventually
from harness.steady_load import Clients, steady_load


class Standby(AnotherService):
    """A second scheduler."""

    async def token(self) -> int:
        """Its fencing token; 0 when it does not lead or does not answer."""
        headers = {"authorization": f"Bearer {self.environment['BUSBAR_OPERATOR_TOKEN']}"}
        async with httpx.AsyncClient(timeout=30, trust_env=False, headers=headers) as client:
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


async def test_a_stale_leader_that_wakes_up_under_load_changes_nothing_and_costs_nobody(
    platform: Platform, operator: Operator, standby: Standby
) -> None:
    customer = await operator.customer()
    clients = Clients(platform.endpoints["grpc"], platform.endpoints["http"], customer.key)
    said_before = len(platform.log("scheduler"))
    async with steady_load(clients, grpc_clients=2, http_clients=1, pause_s=0.05) as log:
        await log.goes_on()
        await platform.kill("scheduler", signal.SIGSTOP)
        try:
            successor = await eventually(standby.token, within_s=60, what="a successor")
            written = await eventually(
                lambda: tokens(platform),
                within_s=60,
                what="everything under the successor's token",
                until=lambda found: found == {successor},
            )
            await log.goes_on()
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
        await log.goes_on()
        standing, leader = await tokens(platform), await standby.token()
    await clients.close()

    assert log.failed == [], log.summary()
    assert '"event": "plan published"' not in said
    assert '"event": "elected"' not in said
    assert (standing, leader) == (written, successor)
