"""Two sites in two regions: both serve; a link or a site's NATS that is lost costs no record.

The link is cut as rural links are: packets vanish, and nobody is told.
"""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from busbar_runtime.platform import Platform
from harness.audit import assert_audit_clean
from harness.cost_records import gaps, measured, unmeasured
from harness.deploying import deploy
from harness.link import Link, link
from harness.operator import Operator
from harness.polling import eventually
from harness.span_receiver import SpanReceiver, span_receiver
from harness.steady_load import Clients, LoadLog, steady_load

CUT_S = float(os.environ.get("BUSBAR_LINK_CUT_S", "7"))
RESTORED_S = 20.0
SERVED_S = 30.0
MEMORY_MAX_MIB = 1300
"""A little more than what the README states; what processes share is counted once."""
SERVICES = ["gateway", "billing", "scheduler", "node-agent-s1", "node-agent-s2"]
TRACED = {"gateway", "node-agent", "triton", "billing"}
NODE = "r1.s1.n1"
"""At the site that is hurt; the gateway is in its region, so work goes there by itself."""


@dataclass(frozen=True)
class Sites:
    """A platform of two sites, the link of the first, and where all of it sends its spans."""

    platform: Platform
    link: Link
    operator: Operator
    spans: SpanReceiver


@pytest.fixture(scope="module")
async def sites(
    tmp_path_factory: pytest.TempPathFactory, demo_models: Path
) -> AsyncIterator[Sites]:
    """`echo-fp32` at both sites, and `at-s1` and `at-s2` at one each."""
    home = tmp_path_factory.mktemp("sites")

    def hub_port() -> int:
        return urlsplit(platform.endpoints["sites"]["r1/s1"]["hub"]).port or 0

    with span_receiver() as spans, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
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
                yield Sites(platform, first, Operator(platform.endpoints), spans)


async def assert_each_serves(platform: Platform, at: Mapping[str, str]) -> None:
    """Each deployment answers from its node, and what that cost arrives."""
    customer = await Operator(platform.endpoints).customer()
    client = triton.InferenceServerClient(platform.endpoints["grpc"])
    tensor = triton.InferInput("INPUT0", [16], "FP32")
    tensor.set_data_from_numpy(np.arange(16, dtype=np.float32))
    headers = {"authorization": f"Bearer {customer.key}"}
    for deployment in at:
        answer = await asyncio.to_thread(
            client.infer, deployment, [tensor], headers=headers, client_timeout=10
        )
        assert answer.as_numpy("OUTPUT0").tolist() == list(range(16))
    client.close()

    async def where() -> set[tuple[str, str]]:
        return {
            (row["deployment"], row["node"])
            for row in await measured(platform)
            if row["tenant_id"] == customer.tenant_id and row["finished"]
        }

    wanted = set(at.items())
    await eventually(where, within_s=30, what="cost records", until=lambda found: found == wanted)


async def test_each_site_serves_and_its_costs_arrive(sites: Sites) -> None:
    await assert_each_serves(sites.platform, {"at-s1": "r1.s1.n1", "at-s2": "r2.s2.n1"})


@pytest.mark.long_fault
@pytest.mark.timeout(600)
async def test_three_whole_sites_serve_and_take_the_memory_that_is_stated(
    tmp_path: Path, demo_models: Path
) -> None:
    """As `./just up --sites 3` runs them: all services, and the demo's models placed."""
    async with Platform(tmp_path, sites=3) as platform:
        nodes = {f"at-{site.partition('/')[2]}": site for site in platform.endpoints["sites"]}
        model = str(demo_models / "echo-fp32")
        await deploy(
            platform, [{"name": one, "path": model, "pins": [at]} for one, at in nodes.items()]
        )
        found = {one: f"{at.replace('/', '.')}.n1" for one, at in nodes.items()}
        await assert_each_serves(platform, found)
        processes = [psutil.Process(platform.daemon_pid)]
        processes += processes[0].children(recursive=True)
        mib = {one: one.memory_full_info().pss / 2**20 for one in processes if one.is_running()}
        tritons = [one for one in processes if "tritonserver" in one.name()]
    print(f"\nthree sites: {len(mib)} processes take {sum(mib.values()):.0f} MiB")  # noqa: T201

    assert sorted(found.values()) == ["r1.s1.n1", "r1.s3.n1", "r2.s2.n1"]
    assert len(tritons) == 3
    assert sum(mib.values()) <= MEMORY_MAX_MIB


async def test_spans_go_where_the_environment_says(sites: Sites) -> None:
    """Of the edge, both sites' nodes and Tritons, and the ledger; telemetry does not even run."""
    customer = await sites.operator.customer()
    tensor = triton.InferInput("INPUT0", [16], "FP32")
    tensor.set_data_from_numpy(np.arange(16, dtype=np.float32))

    async def told(deployment: str) -> set[str]:
        trace_id = secrets.token_hex(16)
        headers = {
            "authorization": f"Bearer {customer.key}",
            "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
        }
        await asyncio.to_thread(
            client.infer, deployment, [tensor], headers=headers, client_timeout=10
        )

        async def services() -> set[str]:
            return sites.spans.services(trace_id)

        with suppress(AssertionError):  # of some requests Triton makes no spans
            return await eventually(
                services, within_s=5, what="spans", until=lambda found: found >= TRACED
            )
        return await services()

    with triton.InferenceServerClient(sites.platform.endpoints["grpc"]) as client:
        for deployment in ("at-s1", "at-s2"):
            await eventually(
                functools.partial(told, deployment),
                within_s=30,
                what=f"a whole trace of {deployment}",
                until=lambda found: found == TRACED,
            )


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
