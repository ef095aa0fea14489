"""Models that never finish loading."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from busbar_contracts.node.v1 import status_pb2

from .node_bench import NodeBench, poll, slow_echo

WITHIN_S = 4.0
READY_AGAIN_S = 15.0


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    """As the one in conftest."""
    return {"BUSBAR_LOAD_WITHIN": f"PT{WITHIN_S:.0f}S"}


def _hangs(files: dict[str, bytes]) -> None:
    files["1/model.py"] = b"import time\ntime.sleep(3600)\n"


async def test_a_load_that_hangs_fails_by_its_deadline_and_others_go_on(node: NodeBench) -> None:
    good, bad = await node.push("slow-echo"), await node.push("slow-echo", _hangs)
    hanging = {f"hanging-{number}": (bad, 1) for number in range(3)}
    await node.place(hanging)

    for deployment in hanging:
        await node.replica(
            deployment, status_pb2.REPLICA_STATE_FAILED, reason=f"not loaded within {WITHIN_S:g} s"
        )
    await node.place({**hanging, "good": (good, 1)})
    await node.ready("good")
    sent = await node.send("good", slow_echo(model="good"))

    assert (await sent.last()).WhichOneof("frame") == "finished"
    assert len(node.log_lines("triton started")) == 1


async def test_a_version_that_loads_replaces_one_that_hung(node: NodeBench) -> None:
    await node.place({"hanging-0": (await node.push("slow-echo"), 1)})

    await node.ready("hanging-0")
    sent = await node.send("hanging-0", slow_echo(model="hanging-0"))

    assert (await sent.last()).WhichOneof("frame") == "finished"
    assert len(node.log_lines("triton started")) == 1
    assert "never retrieved" not in node.log_path.read_text()


async def test_a_version_that_loads_replaces_one_that_hangs(node: NodeBench) -> None:
    good, bad = await node.push("slow-echo"), await node.push("slow-echo", _hangs)
    await node.place({"replaced": (bad, 1)})
    await node.replica("replaced", status_pb2.REPLICA_STATE_LOADING)

    async def begun() -> bool:
        return "loading: replaced:1" in node.log_path.read_text()

    await poll(begun, READY_AGAIN_S)
    await node.place({"replaced": (good, 1)})

    await node.ready("replaced", within_s=READY_AGAIN_S)
