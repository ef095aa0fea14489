"""A node that breaks in ways that nobody is told of, under load, beside one that is well."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from busbar_runtime.platform import Platform
from harness.another_node import another_node
from harness.another_service import AnotherService
from harness.audit import busbar
from harness.figures import Figures
from harness.link import link
from harness.muzzle import Muzzle
from harness.operator import Json, Operator
from harness.polling import eventually
from harness.trial import Trial, trial

pytestmark = [pytest.mark.long_fault, pytest.mark.timeout(600)]

MODELS = ("echo-fp32", "all-minilm-l6-v2", "tiny-lm")
NODE = "r1.s1.n2"
NODE_PATH = f"/admin/v1/nodes/{NODE.replace('.', '/')}"
GAGGED = "node lives and answers nothing"
STREAM_GAP_MAX_S = {"agent killed": 2.0, "triton killed": 5.0, GAGGED: 12.0}
STREAM_GAP_USUAL_MAX_S = 8.0
BACK_MAX_S = 60.0
HUNG_S = 10
KEPT_OUT_MAX_S, PATIENCE_S = 30.0, 30.0
"""A node that answers nothing may take a request again and again until it is kept out: nobody can
say who takes the next attempt. So requests have longer than that."""


Hurt = Callable[["Spare", Trial], Awaitable[None]]


@dataclass(frozen=True)
class Spare:
    """The second node, which is hurt."""

    platform: Platform
    operator: Operator
    agent: AnotherService
    muzzle: Muzzle
    state: Path

    def process(self, name: str) -> psutil.Process:
        """The first process below the agent whose command line has `name` in it."""
        assert self.agent.process is not None
        below = psutil.Process(self.agent.process.pid).children(recursive=True)
        return next(one for one in below if name in " ".join(one.cmdline()))

    async def scale(self, replicas: int) -> None:
        """Promise so many of each model."""
        for name in MODELS:
            path = f"/admin/v1/deployments/{name}/scale"
            await self.operator.json("scheduler", "POST", path, json={"replicas": replicas})

    async def state_of(self, deployment: str) -> tuple[str, str]:
        """The state of its replica, and why."""
        path = f"/admin/v1/deployments/{deployment}"
        view = await self.operator.json("scheduler", "GET", path)
        found = [one for one in view["replica_states"] if one["node"] == NODE]
        return (found[0]["state"], found[0]["reason"]) if found else ("", "")

    async def shown(self) -> Json:
        """What `busbar node show` knows of it."""
        return await self.operator.json("scheduler", "GET", NODE_PATH)

    async def becomes(self, state: str, *, within_s: float = BACK_MAX_S) -> None:
        """Wait until each of its replicas is in that state."""

        async def look() -> set[str]:
            return {(await self.state_of(name))[0] for name in MODELS}

        await eventually(look, within_s=within_s, what=state, until=lambda seen: seen == {state})


@pytest.fixture(scope="module")
async def spare(
    platform: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Spare]:
    operator, home = Operator(platform.endpoints), tmp_path_factory.mktemp("n2")
    bus, muzzle = urlsplit(platform.endpoints["nats"]), Muzzle()
    async with (
        link(lambda: bus.port or 0, new_filter=muzzle.new_filter) as relay,
        another_node(
            platform, home, settings={"BUSBAR_NATS_URL": f"nats://{bus.hostname}:{relay.port}"}
        ) as agent,
    ):
        made = Spare(platform, operator, agent, muzzle, home)
        try:
            await made.scale(2)
            await made.becomes("ready", within_s=120)
            yield made
        finally:
            await made.scale(1)


def assert_within_bounds(load: Trial, found: Figures) -> None:
    assert load.log.failed == [], load.log.failed[:5]
    assert found.stream_gap_s <= STREAM_GAP_MAX_S.get(found.fault, STREAM_GAP_USUAL_MAX_S)
    assert found.full_service_s <= BACK_MAX_S
    assert (found.records_lost, found.charged_twice) == (0, 0)


async def agent_killed(spare: Spare, _load: Trial) -> None:
    await spare.agent.end(signal.SIGKILL)
    await spare.agent.start()


async def agent_hung(spare: Spare, load: Trial) -> None:
    assert spare.agent.process is not None
    spare.agent.process.send_signal(signal.SIGSTOP)
    try:
        await load.passes(HUNG_S)
    finally:
        spare.agent.process.send_signal(signal.SIGCONT)


async def triton_killed(spare: Spare, _load: Trial) -> None:
    killed = spare.process("tritonserver")
    killed.kill()

    async def replaced() -> bool:
        try:
            return spare.process("tritonserver") != killed
        except (StopIteration, psutil.NoSuchProcess):
            return False

    await eventually(replaced, within_s=10, what="another Triton")  # answers of the old one are out


async def triton_hung(spare: Spare, _load: Trial) -> None:
    hung = spare.process("tritonserver")
    hung.suspend()

    async def gone() -> bool:
        return not hung.is_running()

    await eventually(gone, within_s=10, what="the hung Triton is killed")


FAULTS = [agent_killed, agent_hung, triton_killed, triton_hung]


@pytest.mark.parametrize("hurt", FAULTS, ids=lambda hurt: hurt.__name__)
async def test_a_node_that_breaks_costs_a_pause(
    spare: Spare, figures: list[Figures], hurt: Hurt
) -> None:
    async with trial(spare.platform) as load:
        await load.serves(NODE)
        load.begin()
        await hurt(spare, load)
        await load.serves(NODE, within_s=BACK_MAX_S)
        back_s = time.monotonic() - load.fault_at
        await spare.becomes("ready")
    found = await load.judged(hurt.__name__.replace("_", " "), back_s)
    figures.append(found)

    assert_within_bounds(load, found)


async def test_a_node_that_lives_and_answers_nothing_is_kept_out(
    spare: Spare, figures: list[Figures]
) -> None:
    """It renews its lease and takes work, and nothing of what it answers arrives."""

    async def told() -> Json:
        return (await spare.shown())["order"]

    async def emptied() -> bool:
        """By its own report: the plan has let it go before what was in hand is over."""
        shown = await spare.shown()
        return shown["empty"] and not shown["in_flight"]

    async with trial(spare.platform, deadline_s=PATIENCE_S) as load:
        await load.serves(NODE)
        load.begin()
        spare.muzzle.on = True
        order = await eventually(
            told,
            within_s=KEPT_OUT_MAX_S,
            what="it is kept out",
            until=lambda order: order["order"] == "quarantine",
        )
        kept_out_s = time.monotonic() - load.fault_at
        await eventually(emptied, within_s=30, what="it holds nothing")
        swallowed = spare.muzzle.swallowed
        await load.goes_on()
        swallowed_later = spare.muzzle.swallowed - swallowed
        spare.muzzle.on = False
        await spare.operator.json("scheduler", "POST", f"{NODE_PATH}/resume", json={})
        back_s = await load.serves(NODE, within_s=BACK_MAX_S)
        await spare.becomes("ready")
    found = await load.judged(GAGGED, back_s)
    figures.append(found)
    print(f"\nkept out after {kept_out_s:.1f} s and {swallowed} answers: {order['reason']}")  # noqa: T201

    assert "it holds its lease, but fell silent" in order["reason"]
    assert swallowed > 0
    assert swallowed_later == 0, "it takes no work"
    assert_within_bounds(load, found)


def flip(path: Path, content: bytes) -> bool:
    """Flip a bit of this content where the file has it; whether it does."""
    stored = bytearray(path.read_bytes())
    at = stored.find(content)
    if at < 0:
        return False
    stored[at + len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(stored)
    return True


async def test_a_model_that_is_damaged_in_the_cache_and_in_the_store(
    spare: Spare, figures: list[Figures], demo_models: Path
) -> None:
    content = (demo_models / "echo-fp32" / "1" / "model.py").read_bytes()
    streams = (spare.platform.home.data / "nats").rglob("OBJ_models/msgs/*.blk")
    reasons: list[str] = []

    async def refused() -> bool:
        state, reason = await spare.state_of("echo-fp32")
        reasons.append(reason)
        return state == "failed"

    async with trial(spare.platform) as load:
        load.begin()
        in_cache = [flip(one, content) for one in (spare.state / "bundles/files").iterdir()]
        in_store = [flip(one, content) for one in streams]
        spare.process("tritonserver").kill()
        await eventually(refused, within_s=BACK_MAX_S, what="the damage is found")
        pushed = await busbar(
            spare.platform, "model", "push", str(demo_models / "echo-fp32"), "--approve", "--again"
        )
        back_s = await load.serves(NODE)
        await spare.becomes("ready")
    found = await load.judged("model damaged in cache and store", back_s)
    figures.append(found)
    print(f"\n{reasons[-1]}")  # noqa: T201

    assert (any(in_cache), any(in_store), pushed[0]) == (True, True, 0)
    assert "model store" in reasons[-1] or "digest" in reasons[-1]
    assert_within_bounds(load, found)
