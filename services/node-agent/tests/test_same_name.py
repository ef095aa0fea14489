"""Two agents with one node's name: one serves, the other one waits until that has fallen silent."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from busbar_contracts.node.v1.status_pb2 import NodeClaim
from busbar_messaging import topology
from busbar_messaging.background import end
from busbar_runtime.ports import PortPool
from nats.aio.client import Client

from .node_bench import NodeBench, poll, slow_echo

TAKEN_OVER_WITHIN_S = 20.0
REFUSED = "another agent holds this node's name"


@pytest.fixture
async def rival(node: NodeBench, bus: Client, tmp_path: Path) -> AsyncIterator[NodeBench]:
    """Another machine, a copy of the first one while that runs; not started yet."""
    ports, noted = PortPool(), Path(node.environment["BUSBAR_STATE_DIR"]) / "agent.run"

    async def runs() -> bool:
        return bool((await node.lease()).agent_run_id)

    await poll(runs, TAKEN_OVER_WITHIN_S)
    shutil.copy(noted, tmp_path)
    places = {"BUSBAR_STATE_DIR": str(tmp_path), "BUSBAR_OPS_PORT": str(ports.take())}
    made = NodeBench(bus, node.node, {**node.environment, **places}, tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.stop_agent()
    ports.close()


@pytest.fixture
async def pulse(node: NodeBench) -> AsyncIterator[None]:
    """What every scheduler writes among the leases."""
    task = asyncio.create_task(node.pulse())
    yield
    await end([task])


@pytest.mark.usefixtures("pulse")
async def test_the_second_of_two_agents_waits_and_takes_over_from_one_that_fell_silent(
    node: NodeBench, rival: NodeBench
) -> None:
    await node.place({"slow-echo": (await node.push("slow-echo"), 4)})
    await node.ready("slow-echo")
    holder = (await node.lease()).agent_run_id
    rival.start_agent()

    async def refused() -> bool:
        return bool(rival.log_lines(REFUSED))

    await poll(refused, TAKEN_OVER_WITHIN_S)
    claims = await node.client.jetstream().key_value(topology.CLAIMS.name)
    claim = NodeClaim.FromString((await claims.get(node.node.key)).value or b"")
    meanwhile = [await node.send("slow-echo", slow_echo()) for _ in range(20)]
    kinds = {(await one.last()).WhichOneof("frame") for one in meanwhile}
    still_held_by = (await node.lease()).agent_run_id
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    frozen_at_s = time.monotonic()

    async def taken_over() -> bool:
        return (await node.lease()).agent_run_id != holder

    await poll(taken_over, TAKEN_OVER_WITHIN_S)
    took_s = time.monotonic() - frozen_at_s
    node.process.send_signal(signal.SIGCONT)
    status = await asyncio.to_thread(node.process.wait, TAKEN_OVER_WITHIN_S)
    await rival.ready("slow-echo")
    after = await node.send("slow-echo", slow_echo())

    assert (claim.holder_run_id, claim.agent_run_id != holder) == (holder, True)
    assert (kinds, still_held_by) == ({"finished"}, holder)
    assert took_s >= 1.0, "its last lease may have been written a second before it froze"
    assert status == 1, "who wakes up and finds its name taken stops"
    assert (await node.lease()).agent_run_id == claim.agent_run_id
    assert (await after.last()).WhichOneof("frame") == "finished"
