"""An agent whose state lies in a folder that a shell would have to quote, and Python decode."""

from __future__ import annotations

import signal

import psutil
import pytest

from .node_bench import NodeBench, slow_echo


@pytest.fixture(scope="module")
def home_name() -> str:
    """As the one in conftest."""
    return "my nöde's (1)"


async def test_a_model_is_served_from_any_folder(node: NodeBench) -> None:
    await node.place({"slow-echo": (await node.push("slow-echo"), 1)})
    await node.ready("slow-echo")

    sent = await node.send("slow-echo", slow_echo())

    assert (await sent.last()).WhichOneof("frame") == "finished"


async def test_a_successor_kills_what_a_killed_agent_left_of_its_triton(node: NodeBench) -> None:
    triton = psutil.Process(node.triton_pid)
    guards = [one for one in triton.children() if "tether.py" in " ".join(one.cmdline())]
    (model,) = [one for one in triton.children() if "stub" in one.name()]
    model.suspend()
    for guard in guards:
        guard.suspend()  # it would kill the model's process, too
    node.stop_agent(signal.SIGKILL)
    psutil.wait_procs([triton], timeout=10.0)

    node.start_agent()
    await node.ready("slow-echo")

    killed = node.log_lines("process of an earlier triton killed")
    assert guards
    assert model.pid in [line["pid"] for line in killed]
