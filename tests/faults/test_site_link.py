"""Two sites in two regions: both serve; a link or a site's NATS that is lost costs no record.

The link is cut as rural links are: packets vanish, and nobody is told.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc as triton
from busbar_runtime.platform import Platform
from harness.audit import assert_audit_clean
from harness.cost_records import gaps, measured, unmeasured
from harness.deploying import deploy
from harness.link import Link, link
from harness.operator import Operator
from harness.polling import eventually
from harness.steady_load import Clients, LoadLog, steady_load

CUT_S = float(os.environ.get("BUSBAR_LINK_CUT_S", "7"))
RESTORED_S = 20.0
SERVED_S = 30.0
SERVICES = ["gateway", "billing", "scheduler", "node-agent-s1", "node-agent-s2"]
NODE = "r1.s1.n1"
"""At the site that is hurt; the gateway is in its region, so work goes there by itself."""


@dataclass(frozen=True)
class Sites:
    """A platform of two sites, and the link of the first."""

    platform: Platform
    link: Link
    operator: Operator


@pytest.fixture(scope="module")
async def sites(
    tmp_path_factory: pytest.TempPathFactory, demo_models: Path
) -> AsyncIterator[Sites]:
    """`echo-fp32` at both sites, and `at-s1` and `at-s2` at one each."""
    home = tmp_path_factory.mktemp("sites")

    def hub_port() -> int:
        return urlsplit(platform.endpoints["sites"]["r1/s1"]["hub"]).port or 0

    async with link(hub_port) as first:
        platform = Platform(home, parts=SERVICES, sites=2, links={"s1": first.port})
        async with platform:
            model = str(demo_models / "echo-fp32")
            wanted = [
                {"name": "echo-fp32", "path": model, "replicas": 2, "per_site_max": 1},
                {"name": "at-s1", "path": model, "pins": ["r1/s1"]},
                {"name": "at-s2", "path": model, "pins": ["r2/s2"]},
            ]
            await deploy(platform, wanted)
            yield Sites(platform, first, Operator(platform.endpoints))


async def test_each_site_serves_and_its_costs_arrive(sites: Sites) -> None:
    customer = await sites.operator.customer()
    client = triton.InferenceServerClient(sites.platform.endpoints["grpc"])
    tensor = triton.InferInput("INPUT0", [16], "FP32")
    tensor.set_data_from_numpy(np.arange(16, dtype=np.float32))
    headers = {"authorization": f"Bearer {customer.key}"}
    for deployment in ("at-s1", "at-s2"):
        answer = await asyncio.to_thread(
            client.infer, deployment, [tensor], headers=headers, client_timeout=10
        )
        assert answer.as_numpy("OUTPUT0").tolist() == list(range(16))
    client.close()

    async def where() -> set[tuple[str, str]]:
        return {
            (row["deployment"], row["node"])
            for row in await measured(sites.platform)
            if row["tenant_id"] == customer.tenant_id and row["finished"]
        }

    wanted = {("at-s1", "r1.s1.n1"), ("at-s2", "r2.s2.n1")}
    found = await eventually(where, within_s=15, what="cost records", until=lambda at: at == wanted)
    assert found == wanted


async def cut_link(sites: Sites) -> None:
    """No packet either way for a while; then all of them."""
    sites.link.cut()
    began = time.monotonic()

    async def long_enough() -> bool:
        return time.monotonic() - began >= CUT_S

    await eventually(long_enough, within_s=CUT_S + 5, what="the cut")
    sites.link.restore()


async def kill_site_bus(sites: Sites) -> None:
    await sites.platform.kill("nats-s1", signal.SIGKILL)
    await sites.platform.wait_ready("nats-s1")


@pytest.mark.parametrize("hurt", [cut_link, kill_site_bus], ids=["link", "nats"])
async def test_a_site_that_is_cut_off_loses_no_cost_record_and_charges_nobody_twice(
    sites: Sites, hurt: Callable[[Sites], Awaitable[None]]
) -> None:
    platform, operator = sites.platform, sites.operator
    customer = await operator.customer()
    clients = Clients(platform.endpoints["grpc"], platform.endpoints["http"], customer.key)
    began = time.monotonic()
    async with steady_load(clients, grpc_clients=4, http_clients=0) as log:
        await served(log, 100, since=began)
        fault_at = time.monotonic()
        await hurt(sites)
        restored_at = time.monotonic()
        await served_by(sites, NODE, since=time.time())
        back_s = time.monotonic() - restored_at
        await served(log, 50, since=time.monotonic())
    await clients.close()
    answered = {request.request_id for request in log.answered}

    async def without_record() -> set[str]:
        return unmeasured(await measured(platform), answered)

    await eventually(
        without_record,
        within_s=RESTORED_S,
        what="each answer is measured",
        until=lambda left: not left,
    )
    missing = gaps(await measured(platform))
    await assert_audit_clean(platform)
    charges = Counter(one["request_id"] for one in await operator.usage(customer.tenant_id))
    print(  # noqa: T201
        f"\n{hurt.__name__}: {log.summary()}; longest gap {log.longest_gap_s(fault_at):.1f} s; "
        f"its records came again after {back_s:.1f} s, {len(missing)} runs lack some"
    )
    log.assert_clear_and_in_time()
    assert missing == {}
    assert [one for one, count in charges.items() if count > 1] == []
    assert answered <= set(charges)


async def served(log: LoadLog, count: int, *, since: float) -> None:
    async def answered() -> int:
        return log.answered_since(since)

    await eventually(
        answered, within_s=SERVED_S, what=f"{count} answers", until=lambda n: n >= count
    )


async def served_by(sites: Sites, node: str, *, since: float) -> None:
    """Wait until the node has finished work after `since` (Unix seconds) and its record is here."""

    async def worked() -> bool:
        rows = await measured(sites.platform)
        return any(row["node"] == node and row["ended_at"].timestamp() > since for row in rows)

    await eventually(worked, within_s=SERVED_S, what=f"{node} works")
