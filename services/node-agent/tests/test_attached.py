"""An agent beside a Triton that somebody else runs, as in compose and in a pod."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request

import pytest
from busbar_contracts.node.v1 import status_pb2, work_pb2
from busbar_messaging.topology import measured_stream, measured_subject
from harness.another_gateway import CLOCK_OFF
from nats.js.errors import NotFoundError

from .conftest import Attached
from .node_bench import poll, slow_echo


@pytest.fixture(autouse=True)
async def placed(attached: Attached) -> None:
    """The agent runs, and has slow-echo loaded."""
    node = attached.node
    if node.process is None or node.process.poll() is not None:
        node.start_agent()
    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")


async def test_a_model_is_loaded_into_somebody_elses_triton(attached: Attached) -> None:
    node = attached.node
    sent = await node.send("slow-echo", slow_echo())

    assert (await sent.last()).WhichOneof("frame") == "finished"


async def test_its_hang_hands_work_back_and_is_waited_for(attached: Attached) -> None:
    node = attached.node
    sent = await node.send("slow-echo", slow_echo(delay_ms=20_000))
    await sent.until("started")
    began_s = time.monotonic()

    async def hung() -> bool:
        return (await node.status()).triton_state == status_pb2.TRITON_STATE_HUNG

    async def idle() -> bool:
        return not (await node.lease()).ready

    async def healthy() -> bool:
        return (await node.status()).triton_state == status_pb2.TRITON_STATE_READY

    os.kill(attached.triton.pid, signal.SIGSTOP)
    try:
        failed = (await sent.last()).failed
        noticed_s = time.monotonic() - began_s
        await poll(hung, 30.0)
        await poll(idle, 30.0)
    finally:
        os.kill(attached.triton.pid, signal.SIGCONT)
    await poll(healthy, 30.0)
    await node.ready("slow-echo")
    after = await node.send("slow-echo", slow_echo())

    assert failed.kind == work_pb2.FAILURE_KIND_ENGINE_LOST
    assert noticed_s < 5.0
    assert (await after.last()).WhichOneof("frame") == "finished"


async def test_an_agent_that_stops_unloads_and_one_that_was_killed_is_cleaned_up_after(
    attached: Attached,
) -> None:
    node = attached.node
    node.stop_agent(signal.SIGKILL)
    left_behind = _ready_models(attached)
    await node.place({})

    node.start_agent()

    async def cleaned() -> bool:
        return not _ready_models(attached)

    await poll(cleaned, 30.0)
    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")
    status = node.stop_agent()

    assert left_behind == ["slow-echo"]
    assert status == 0
    assert _ready_models(attached) == []


def _ready_models(attached: Attached) -> list[str]:
    request = urllib.request.Request(
        f"{attached.triton.http_url}/v2/repository/index", data=b'{"ready": true}'
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return [model["name"] for model in json.loads(answer.read())]


@pytest.mark.parametrize("off_s", [3600, -3600])
async def test_a_node_whose_clock_is_an_hour_off_works_and_keeps_deadlines(
    attached: Attached, off_s: int
) -> None:
    node = attached.node
    node.stop_agent(signal.SIGKILL)
    own = dict(node.environment)
    node.environment |= {"PYTHONPATH": str(CLOCK_OFF), "TEST_CLOCK_OFF_S": str(off_s)}
    node.start_agent()
    node.environment = own
    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")
    stream = measured_stream(node.node.region, node.node.site).name

    answered = await node.send("slow-echo", slow_echo())
    kinds: list[object] = [(await answered.last()).WhichOneof("frame")]
    for deadline_s in (-1.0, 0.4):
        sent = await node.send("slow-echo", slow_echo(delay_ms=5000), deadline_s=deadline_s)
        kinds.append((await sent.last(within_s=4.0)).failed.kind)

    run_id = (await node.status()).agent_run_id
    ended_s: list[float] = []

    async def measured() -> bool:
        try:
            last = await node.client.jetstream().get_last_msg(stream, measured_subject(node.node))
        except NotFoundError:
            return False
        batch = status_pb2.WorkMeasuredBatch.FromString(last.data or b"")
        if batch.agent_run_id == run_id:
            ended_s.extend(record.ended_unix_ms / 1000 for record in batch.records)
        return bool(ended_s)

    await poll(measured, 5.0)

    too_late = work_pb2.FAILURE_KIND_DEADLINE_EXCEEDED
    assert kinds == ["finished", too_late, too_late]
    assert all(abs(ended - time.time()) < 60 for ended in ended_s)
