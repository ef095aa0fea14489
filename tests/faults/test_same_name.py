"""Two agents that were given the same node's name: the one that serves goes on doing so."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from busbar_runtime.platform import Platform
from harness.another_node import another_node
from harness.audit import busbar
from harness.operator import Json, Operator
from harness.polling import eventually
from harness.steady_load import Clients, steady_load

NODE = "r1/s1/n1"


async def test_a_second_agent_with_a_nodes_name_is_refused_said_so_and_costs_nobody(
    platform: Platform, operator: Operator, tmp_path: Path
) -> None:
    async def shown() -> Json:
        return await operator.json("scheduler", "GET", f"/admin/v1/nodes/{NODE}")

    customer = await operator.customer()
    clients = Clients(platform.endpoints["grpc"], platform.endpoints["http"], customer.key)
    async with steady_load(clients, grpc_clients=2, http_clients=1, pause_s=0.05) as log:
        await log.goes_on()
        before = await shown()
        async with another_node(platform, tmp_path, node="n1", ready=False) as second:
            claimed = await eventually(
                shown, within_s=30, what="a claim", until=lambda view: view["claim"]
            )
            _, told, _ = await busbar(platform, "node", "show", NODE)
            await log.goes_on()
            takes_work = await second.ready()
            status = await second.end(signal.SIGTERM)
        await log.goes_on()
        after = await shown()
    await clients.close()

    assert log.failed == [], log.summary()
    assert not takes_work
    assert status == 0, "it can be stopped while it waits"
    assert told["claim"]["host"] == socket.gethostname()
    assert told["claim"]["run_id"] != told["claim"]["holder_run_id"]
    assert {view["health"] for view in (before, claimed, after)} == {"ok"}
    assert after["finished_count"] > claimed["finished_count"] > before["finished_count"]
