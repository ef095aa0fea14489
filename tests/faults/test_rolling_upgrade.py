"""Every service and every agent is stopped and started in turn, under steady load.

As an upgrade does it: SIGTERM, wait until it is gone, start the next one. Gateways
stand behind a balancer that looks at /readyz, agents beside others that have the
same models. Not one request may fail, no stream break off.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from busbar_messaging.background import end
from busbar_runtime.platform import Platform
from harness.another_gateway import AnotherGateway, another_gateway
from harness.another_node import another_node
from harness.another_service import AnotherService
from harness.audit import busbar
from harness.balancer import Backend, balancer
from harness.bundles import files_of
from harness.deploying import deploy
from harness.operator import PAID_IN_NANOS, Customer, Operator, edge
from harness.polling import eventually
from harness.steady_load import Clients, LoadLog, steady_load

REPO = Path(__file__).resolve().parents[2]
NOTICE_S = 1
GRACE_S, LATE_S = 8, 5
MODELS = ("echo-fp32", "all-minilm-l6-v2", "repeat", "tiny-lm")
SLOW, LOADING_S = "slow-to-load", 25
PREVIOUS = REPO / "tests" / "contracts" / "previous_release.commit"
GATEWAY = {"BUSBAR_STOP_NOTICE": f"PT{NOTICE_S}S", "BUSBAR_STOP_GRACE": "PT20S"}


@dataclass(frozen=True)
class Fleet:
    """Two gateways behind a balancer; two nodes, of which the platform's own is the first."""

    gateways: list[AnotherGateway]
    node: AnotherService
    http: str
    grpc: str


async def scale(operator: Operator, replicas: int) -> None:
    """That many replicas of each model of the load, all of them ready."""
    for name in MODELS:
        path = f"/admin/v1/deployments/{name}"
        await operator.json("scheduler", "POST", f"{path}/scale", json={"replicas": replicas})

    async def short() -> list[str]:
        found = await operator.json("scheduler", "GET", "/admin/v1/deployments")
        ready = {one["name"]: one["ready_replicas"] for one in found["items"]}
        return [name for name in MODELS if ready[name] != replicas]

    await eventually(
        short, within_s=60, what=f"{replicas} replicas are ready", until=lambda names: not names
    )


@pytest.fixture(scope="module")
async def fleet(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    operator, home = Operator(platform.endpoints), tmp_path_factory.mktemp("fleet")
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(another_node(platform, home / "n2"))
        gateways = [
            await stack.enter_async_context(
                another_gateway(platform, home / name, gateway_id=name, settings=GATEWAY)
            )
            for name in ("up1", "up2")
        ]
        backends = [Backend(one.http, one.grpc, one.ops) for one in gateways]
        before = await stack.enter_async_context(balancer(backends))
        await scale(operator, 2)
        yield Fleet(gateways, node, before.http, before.grpc)
        await scale(operator, 1)


@asynccontextmanager
async def loaded(fleet: Fleet, operator: Operator, customer: Customer) -> AsyncIterator[LoadLog]:
    """Steady load of every kind, from before the block until after it."""
    for gateway in fleet.gateways:  # the operator waited for the platform's own alone
        await operator.known(customer.key, gateway.http)
    clients = Clients(fleet.grpc, fleet.http, customer.key)
    async with steady_load(clients, grpc_clients=4, http_clients=2, streams_of_each=2) as log:
        await goes_on(log)
        yield log
        await goes_on(log)
    await clients.close()


async def goes_on(log: LoadLog) -> None:
    """A second of streams and their neighbours was answered, all of it sent from now on."""
    since = time.monotonic()

    async def answered() -> int:
        return log.answered_since(since)

    await eventually(answered, within_s=20, what="the load goes on", until=lambda n: n >= 40)


async def assert_nothing_failed(operator: Operator, customer: Customer, log: LoadLog) -> None:
    """Every request was answered, and was charged once."""
    print(f"\n{log.summary()}, longest gap {log.longest_gap_s(log.ended[0].at):.2f} s")  # noqa: T201
    assert log.failed == [], log.failed[:5]
    log.assert_clear_and_in_time()
    records = await eventually(
        lambda: operator.usage(customer.tenant_id),
        within_s=20,
        what="every answer is charged",
        until=lambda found: len(found) >= len(log.answered),
    )
    charged = {record["request_id"] for record in records if not record["voided"]}
    assert len(records) == len(charged) == len(log.answered)
    assert {one.request_id for one in log.answered if one.request_id} <= charged
    spent = sum(record["amount_nanos"] for record in records)
    assert await operator.balance(customer.tenant_id) == PAID_IN_NANOS - spent


async def test_services_that_no_request_needs_are_upgraded_one_after_the_other(
    platform: Platform, operator: Operator, customer: Customer, fleet: Fleet
) -> None:
    async with loaded(fleet, operator, customer) as log:
        took_s: dict[str, float] = {}
        for service in ("billing", "scheduler", "telemetry"):
            began = time.monotonic()
            await platform.restart(service)
            took_s[service] = round(time.monotonic() - began, 1)
    print(f"\n{took_s}")  # noqa: T201

    await assert_nothing_failed(operator, customer, log)


async def test_gateways_are_upgraded_one_after_the_other(
    operator: Operator, customer: Customer, fleet: Fleet
) -> None:
    async with loaded(fleet, operator, customer) as log:
        statuses = [await gateway.restart() for gateway in fleet.gateways]

    assert statuses == [0, 0]
    await assert_nothing_failed(operator, customer, log)


async def test_a_node_is_drained_under_load_and_says_what_became_of_its_requests(
    platform: Platform, operator: Operator, customer: Customer, fleet: Fleet
) -> None:
    async with loaded(fleet, operator, customer) as log:
        status, answer, complaints = await busbar(
            platform, "node", "drain", "r1/s1/n2", "--grace", str(GRACE_S), "--wait"
        )
        await operator.json("scheduler", "POST", "/admin/v1/nodes/r1/s1/n2/resume", json={})
        await scale(operator, 2)

    print(f"\n{answer}")  # noqa: T201
    assert (status, complaints) == (0, "")
    assert answer["drained"] == ["r1.s1.n2"]
    assert {one["deployment"] for one in answer["replicas"]} >= set(MODELS)
    assert answer["finished"] > 0
    assert answer["handed_back"] == 0, "half of the grace is enough for streams of a second"
    assert answer["took_s"] <= GRACE_S + LATE_S
    await assert_nothing_failed(operator, customer, log)


@asynccontextmanager
async def slow_model(platform: Platform, operator: Operator, place: Path) -> AsyncIterator[None]:
    """SLOW on both nodes: as a model of some size, it takes a while to load."""
    files = files_of(REPO / "deploy" / "demo" / "models" / "slow-echo")
    begins = b"class TritonPythonModel:\n"
    slow = b"    def initialize(self, args):\n        threading.Event().wait(%d)\n\n" % LOADING_S
    files["1/model.py"] = files["1/model.py"].replace(begins, begins + slow)
    for named in ("config.pbtxt", "busbar.yaml"):
        files[named] = files[named].replace(b"slow-echo", SLOW.encode(), 1)
    for path, content in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    await deploy(platform, [{"name": SLOW, "path": str(place), "replicas": 2}])
    try:
        yield
    finally:
        await operator.json("scheduler", "DELETE", f"/admin/v1/deployments/{SLOW}")


@asynccontextmanager
async def asked(fleet: Fleet, operator: Operator) -> AsyncIterator[Counter[int]]:
    """A customer of its own asks SLOW during the block; how often it got which status."""
    statuses, customer = Counter[int](), await operator.customer()
    for gateway in fleet.gateways:
        await operator.known(customer.key, gateway.http)
    body = {
        "inputs": [
            {"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [1.5]},
            {"name": "delay_ms", "datatype": "INT32", "shape": [1], "data": [50]},
        ]
    }

    async def ask() -> None:
        async with edge(fleet.http, customer.key) as client:
            while True:
                answer = await client.post(f"/v2/models/{SLOW}/infer", json=body)
                statuses[answer.status_code] += 1

    task = asyncio.create_task(ask())
    try:
        yield statuses
        assert not task.done(), "it asked to the end"
    finally:
        await end([task])


async def test_agents_are_upgraded_one_after_the_other_by_what_readyz_says(
    platform: Platform, operator: Operator, customer: Customer, fleet: Fleet, tmp_path: Path
) -> None:
    async with slow_model(platform, operator, tmp_path):
        async with asked(fleet, operator) as statuses, loaded(fleet, operator, customer) as log:
            status = await fleet.node.restart()
            await platform.restart("node-agent")
        await scale(operator, 2)

    assert status == 0
    assert set(statuses) == {200}, statuses
    await assert_nothing_failed(operator, customer, log)


def previous_code(place: Path) -> str:
    """A PYTHONPATH that has our own code as the previous release had it, before today's."""
    commit = PREVIOUS.read_text().strip()
    archive = subprocess.run(
        ["git", "archive", commit, "libs", "services"], cwd=REPO, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive.stdout, check=True)
    return ":".join(str(one) for one in sorted(place.glob("*/*/src")))


@pytest.mark.long_fault
async def test_a_gateway_and_an_agent_of_the_previous_release_are_upgraded_under_load(
    platform: Platform, operator: Operator, customer: Customer, tmp_path: Path
) -> None:
    """Beside this release's scheduler, billing, gateway and agent, and then to it."""
    place = tmp_path / "code"
    place.mkdir()
    old = {"PYTHONPATH": previous_code(place)}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        node = await enter(another_node(platform, tmp_path / "n3", node="n3", settings=old))
        gateway = await enter(
            another_gateway(
                platform, tmp_path / "g3", gateway_id="old", settings={**GATEWAY, **old}
            )
        )
        new = await enter(
            another_gateway(platform, tmp_path / "g4", gateway_id="new", settings=GATEWAY)
        )
        before = await enter(
            balancer([Backend(one.http, one.grpc, one.ops) for one in (gateway, new)])
        )
        await scale(operator, 2)
        fleet = Fleet([gateway, new], node, before.http, before.grpc)
        async with loaded(fleet, operator, customer) as log:
            for one in (gateway, node):
                assert one.environment["PYTHONPATH"] == old["PYTHONPATH"]
                one.environment = {
                    name: value for name, value in one.environment.items() if name != "PYTHONPATH"
                }
                assert await one.restart() == 0
                await goes_on(log)
            await scale(operator, 2)
        await scale(operator, 1)

    await assert_nothing_failed(operator, customer, log)
