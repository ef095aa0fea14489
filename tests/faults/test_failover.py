"""A node lost in the middle of streams: they go on at another, as if nothing had been.

The model is greedy, so what the customers get can be compared with what it says undisturbed.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from busbar_messaging.bundles.sealing import SigningKey
from busbar_runtime.platform import Platform
from harness.another_node import another_node
from harness.another_service import AnotherService
from harness.bundles import files_of, make
from harness.operator import Customer, Json, Operator
from harness.polling import eventually, stays
from harness.scrambling import NAME as SCRAMBLED
from harness.scrambling import scrambling
from harness.stories import (
    PROMPTS,
    Story,
    assert_told_as_if_nothing_had_been,
    begin,
    charges,
    tell,
    telling,
    undisturbed,
)

DEPLOYMENT = "tiny-lm-twice"
SIMPLE = Path(__file__).parents[2] / "deploy/demo/models/simple"
SPARE = "r1.s1.n2"
STREAMS, STREAMS_MAX = 6, 32
TOLD_WITHIN_S = 90
WITHIN_S = 60
"""Where nothing is promised."""
SETTLED_S = 0.3
"""Then whatever Triton said before it stood still has been passed on, and its request acknowledged
if that was the last of it."""
WORKED, IN_HAND = "busbar_agent_compute_seconds_total", "busbar_agent_in_flight"
GAP_MAX_S = {"agent killed": 2.0, "agent stopped": 8.0, "triton killed": 5.0}


@pytest.fixture(scope="module")
async def spare(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AnotherService]:
    """A second node, and a deployment with a replica on each."""
    operator = Operator(platform.endpoints)
    path = f"/admin/v1/deployments/{DEPLOYMENT}"
    async with another_node(platform, tmp_path_factory.mktemp("n2")) as node:
        await operator.json("scheduler", "PUT", path, json={"bundle": "tiny-lm", "replicas": 2})
        await both_ready(operator)
        yield node
    await operator.json("scheduler", "DELETE", path)


async def both_ready(operator: Operator) -> None:
    async def look() -> str:
        view = await operator.json("scheduler", "GET", f"/admin/v1/deployments/{DEPLOYMENT}")
        return view["status"]

    what = "a replica on each node"
    await eventually(look, within_s=WITHIN_S, what=what, until=lambda status: status == "ready")


async def begin_until_taken(
    client: httpx.AsyncClient,
    node: AnotherService,
    triton: psutil.Process,
    tasks: asyncio.TaskGroup,
) -> list[Story]:
    """Streams that have begun, one of them at the node: its Triton stands still in the middle."""
    stories = list[Story]()
    while True:
        assert len(stories) < STREAMS_MAX, "the node takes none"
        story = begin(client, DEPLOYMENT, len(stories), tasks)
        stories.append(story)

        async def begun(story: Story = story) -> bool:
            return bool(story.at)

        await eventually(begun, within_s=WITHIN_S, what="the stream has begun")
        if len(stories) < STREAMS:
            continue

        async def has_some() -> bool:
            return await node.metric(IN_HAND) > 0

        triton.suspend()
        if await stays(has_some, for_s=SETTLED_S):
            return stories
        triton.resume()


async def works(client: httpx.AsyncClient, node: AnotherService) -> None:
    """Wait until the node gets its share of the work."""
    before = await node.metric(WORKED)

    async def look() -> float:
        await asyncio.gather(*(tell(client, DEPLOYMENT, PROMPTS[2], Story()) for _ in range(2)))
        return await node.metric(WORKED)

    await eventually(look, within_s=WITHIN_S, what="the node works", until=lambda now: now > before)


def triton_of(node: AnotherService) -> psutil.Process:
    assert node.process is not None
    below = psutil.Process(node.process.pid).children(recursive=True)
    return next(one for one in below if "tritonserver" in one.name())


async def hurt(node: AnotherService, triton: psutil.Process, fault: str) -> None:
    """Do it to a node whose Triton stands still, so that what it has in hand is not done first."""
    if fault == "triton killed":
        triton.send_signal(signal.SIGKILL)
    elif fault == "agent killed":
        await node.end(signal.SIGKILL)
    else:
        assert node.process is not None
        node.process.send_signal(signal.SIGSTOP)
        triton.resume()


async def heal(node: AnotherService, fault: str) -> None:
    if fault == "agent killed":
        await node.start()
    elif fault == "agent stopped":
        assert node.process is not None
        node.process.send_signal(signal.SIGCONT)


PICKY = """
import os
class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        here = args["model_repository"].encode()
        try:
            os.write(os.open({mark!r}, os.O_CREAT | os.O_EXCL | os.O_WRONLY), here)
        except FileExistsError:
            pass
        if open({mark!r}, "rb").read() == here:
            raise RuntimeError("no such GPU on this node")
"""
"""Fails on the node on which it was first loaded, and on no other."""


async def leaked(operator: Operator, customer: Customer, resumed: set[str]) -> None:
    """Wait until the work that a later attempt made anew is listed as leakage."""
    until = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    params = {"tenant_id": customer.tenant_id, "until": until}

    async def look() -> set[str]:
        page = await operator.json("billing", "GET", "/admin/v1/leakage", params=params)
        lost = [one for one in page["items"] if one["reason"] == "other_attempt_charged"]
        return {one["request_id"] for one in lost}

    await eventually(look, within_s=WITHIN_S, what="leakage", until=lambda seen: resumed <= seen)


@pytest.mark.parametrize("fault", list(GAP_MAX_S), ids=lambda fault: fault.replace(" ", "-"))
async def test_streams_go_on_at_another_node(
    platform: Platform, operator: Operator, spare: AnotherService, fault: str
) -> None:
    customer = await operator.customer()
    await both_ready(operator)
    async with telling(platform, customer) as client:
        await works(client, spare)
        whole = await undisturbed(client, DEPLOYMENT)
        async with asyncio.timeout(TOLD_WITHIN_S), asyncio.TaskGroup() as tasks:
            triton = triton_of(spare)  # looking for it takes as long as a short stream
            stories = await begin_until_taken(client, spare, triton, tasks)
            in_hand = [story for story in stories if not story.done]
            await hurt(spare, triton, fault)
        await heal(spare, fault)
    told = [*whole.values(), *stories]
    charged = await charges(operator, customer, {story.request_id for story in told})
    resumed = [story for story in in_hand if charged[story.request_id]["attempt"] > 1]
    gap_s = max(story.longest_gap_s for story in stories)
    print(  # noqa: T201
        f"\n{fault}: {len(stories)} streams, {len(resumed)} resumed, 0 failed, "
        f"longest gap {gap_s:.2f} s, charged twice 0"
    )

    if fault == "triton killed":  # what the others had measured died or stopped with their agent
        await leaked(operator, customer, {story.request_id for story in resumed})
    assert resumed
    assert gap_s <= GAP_MAX_S[fault]
    assert_told_as_if_nothing_had_been(stories, whole, charged)


async def test_a_model_that_fails_on_one_node_goes_to_another_and_the_rest_stays(
    platform: Platform, operator: Operator, spare: AnotherService, tmp_path: Path
) -> None:
    del spare
    files = files_of(SIMPLE)
    files["1/model.py"] += PICKY.format(mark=str(tmp_path / "first")).encode()
    made = make(files).sealed_by(SigningKey.from_pem(platform.secrets.signing_key.encode()))
    path = "/admin/v1/deployments/picky"
    await operator.push(made)
    await both_ready(operator)
    await operator.json("scheduler", "PUT", path, json={"bundle": made.digest})
    view = await eventually(
        lambda: operator.json("scheduler", "GET", path),
        within_s=60,
        what="a node that can run it",
        until=lambda view: view["status"] == "ready",
    )
    why = await operator.json("scheduler", "GET", f"{path}/explain")
    others = await operator.json("scheduler", "GET", f"/admin/v1/deployments/{DEPLOYMENT}")
    await operator.call("scheduler", "DELETE", path)

    (serving,), (kept_off,) = view["replica_states"], why["kept_off"]
    assert {serving["node"], kept_off["node"]} == {"r1.s1.n1", SPARE}
    assert "no such GPU on this node" in kept_off["reason"]
    assert 30 < kept_off["for_s"] <= 60
    assert others["ready_replicas"] == 2, "other models of that node stay"


@pytest.fixture
async def marks(
    platform: Platform, operator: Operator, spare: AnotherService, tmp_path: Path
) -> AsyncIterator[Path]:
    """The file that says at which nodes the model that embeds answers garbage."""
    del spare
    made = tmp_path / "marks"
    made.write_text("")
    await operator.push(scrambling(platform, made))
    await both_ready(operator)
    yield made
    await operator.call("scheduler", "DELETE", f"/admin/v1/deployments/{SCRAMBLED}")


async def place_scrambled(operator: Operator, ready: int) -> list[Json]:
    """Declare it on both nodes and wait until so many of its replicas work; their states."""
    path = f"/admin/v1/deployments/{SCRAMBLED}"
    body = {"bundle": SCRAMBLED, "replicas": 2}
    await operator.json("scheduler", "PUT", path, json=body)

    async def look() -> list[Json]:
        view = await operator.json("scheduler", "GET", path)
        return view["replica_states"]

    def settled(states: list[Json]) -> bool:
        working = sum(one["state"] == "ready" for one in states)
        failed = sum(one["state"] == "failed" for one in states)
        return working == ready and working + failed == 2

    return await eventually(look, within_s=60, what=SCRAMBLED, until=settled)


async def embed(client: httpx.AsyncClient) -> httpx.Response:
    body = {"model": SCRAMBLED, "input": "a"}
    return await client.post("/v1/embeddings", json=body)


async def test_a_model_that_garbles_its_first_answer_takes_no_work_there(
    platform: Platform, operator: Operator, spare: AnotherService, marks: Path
) -> None:
    marks.write_text(spare.environment["BUSBAR_STATE_DIR"])
    states = await place_scrambled(operator, ready=1)
    customer = await operator.customer()
    async with telling(platform, customer) as client:
        answers = [await embed(client) for _ in range(20)]
    charged = await charges(operator, customer, {one.headers["x-request-id"] for one in answers})

    [failed] = [one for one in states if one["state"] == "failed"]
    assert failed["node"] == SPARE
    assert "warm-up answered wrongly: embedding" in failed["reason"]
    assert [one.status_code for one in answers] == [200] * 20
    assert {one["node"] for one in charged.values()} == {"r1.s1.n1"}


async def test_a_node_that_begins_to_answer_garbage_takes_no_more_and_nobody_notices(
    platform: Platform, operator: Operator, spare: AnotherService, marks: Path
) -> None:
    await place_scrambled(operator, ready=2)
    customer = await operator.customer()
    seen = list[httpx.Response]()

    async def failed_there() -> str:
        seen.extend(await asyncio.gather(*(embed(client) for _ in range(4))))
        view = await operator.json("scheduler", "GET", f"/admin/v1/deployments/{SCRAMBLED}")
        broken = [one for one in view["replica_states"] if one["state"] == "failed"]
        return broken[0]["reason"] if broken and broken[0]["node"] == SPARE else ""

    async with telling(platform, customer) as client:
        marks.write_text(spare.environment["BUSBAR_STATE_DIR"])
        reason = await eventually(failed_there, within_s=60, what="it is noticed")
        after = [await embed(client) for _ in range(20)]
    charged = await charges(operator, customer, {one.headers["x-request-id"] for one in seen})
    again = [one for one in charged.values() if one["attempt"] > 1]
    print(f"\ngarbage: {len(seen)} asked before it was seen, {len(again)} of them twice or more")  # noqa: T201

    assert [one.text for one in [*seen, *after] if not one.is_success] == []
    assert again, "nothing was garbled"
    assert "warm-up answered wrongly: embedding" in reason
    assert {one["node"] for one in charged.values() if one["attempt"] > 1} == {"r1.s1.n1"}
    paid = await charges(operator, customer, {one.headers["x-request-id"] for one in after})
    assert {paid[one.headers["x-request-id"]]["node"] for one in after} == {"r1.s1.n1"}
