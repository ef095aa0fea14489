"""An agent beside a Triton that somebody else runs, as in compose and in a pod."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request

from busbar_contracts.node.v1 import status_pb2, work_pb2

from .conftest import Attached
from .node_bench import poll, slow_echo


async def test_a_model_is_loaded_into_somebody_elses_triton(attached: Attached) -> None:
    node = attached.node
    await node.place({"slow-echo": (await node.push("slow-echo"), 2)})
    await node.ready("slow-echo")

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
        await poll(hung, 5.0)
        await poll(idle, 5.0)
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
