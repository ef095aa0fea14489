"""The puller on a real bus."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from busbar_contracts.scheduler.v1 import plan_pb2
from busbar_errors import Rejected
from busbar_messaging import provision
from busbar_messaging.hot_connection import HotConnection
from busbar_messaging.topology import sealed_queue, work_consumer, work_stream, work_subject
from busbar_node_agent.adapters.puller import WorkPuller
from busbar_node_agent.domain.credits import Credits
from busbar_node_agent.domain.starting import Start
from busbar_node_agent.usecases.lane import Lane
from busbar_node_agent.usecases.reconcile import Reconciler
from harness.polling import eventually
from nats.aio.client import Client

from .conftest import NatsServer, provisioning

REGION = "pulling"


async def test_it_stops_though_a_flush_swallows_the_cancellation(
    bus: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.wait_for does so until Python 3.12 when what it waits for ends just then."""
    flushing, over = asyncio.Event(), asyncio.Event()

    async def flush(_: float = 10) -> None:
        flushing.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if over.is_set():
                raise

    triton: Any = None  # nothing arrives for it: there is no such consumer
    lane = Lane("nothing", Credits(1), triton, None, lambda: None)
    puller = WorkPuller(
        bus, HotConnection(bus), work_consumer("r1", "nothing"), lane, lambda *_: None
    )
    puller.start()
    monkeypatch.setattr(bus, "flush", flush)
    await asyncio.wait_for(flushing.wait(), 10)

    stopping = asyncio.create_task(puller.stop())
    ended, _ = await asyncio.wait(
        [stopping], timeout=5
    )  # a timeout's cancellation is swallowed too
    over.set()
    stopping.cancel()

    assert ended
    assert lane.credits.outstanding == 0


async def test_it_goes_on_where_its_queue_is_called_otherwise(
    bus: Client, nats_server: NatsServer
) -> None:
    """As the scheduler does it: the old queue is gone, the new one there, then nodes are told."""
    await provision.apply(bus, provisioning(nats_server, REGION))
    jetstream, taken = bus.jetstream(), list[bytes]()
    first, second = (sealed_queue("m", digit * 32) for digit in "ab")
    stream, subject = work_stream(REGION).name, work_subject(REGION, "m")

    def take(data: bytes, lane: Lane) -> None:
        lane.occupied()
        taken.append(data)
        lane.freed()

    async def took(count: int) -> None:
        async def look() -> int:
            return len(taken)

        await eventually(look, within_s=20, what="work", until=lambda found: found == count)

    async def acknowledged() -> None:
        async def look() -> int:
            return (await jetstream.stream_info(stream)).state.messages

        await eventually(look, within_s=20, what="left", until=lambda left: left == 0)

    triton: Any = None  # it is not asked
    lane = Lane("m", Credits(2), triton, None, lambda: None)
    spec = work_consumer(REGION, "m", first)
    puller = WorkPuller(bus, HotConnection(bus), spec, lane, take)
    await jetstream.add_consumer(stream, spec.config())
    puller.start()
    await jetstream.publish(subject, b"one")
    await took(1)
    await acknowledged()  # what is not comes out again
    await jetstream.delete_consumer(stream, first)
    await jetstream.publish(subject, b"two")
    await jetstream.add_consumer(stream, work_consumer(REGION, "m", second).config())
    puller.adjust(2, second)
    await took(2)
    await jetstream.publish(subject, b"three")
    await took(3)
    await puller.stop()

    assert taken == [b"one", b"two", b"three"]
    assert lane.credits.outstanding == 0
    await jetstream.delete_stream(stream)


def test_work_of_another_deployments_queue_is_asked_for_by_nobody() -> None:
    told = plan_pb2.ReplicaAssignment(deployment="mine", queue=sealed_queue("theirs", "a" * 32))
    tools: Any = None  # nothing is started with them
    reconciler = Reconciler(tools, Start(0.0))

    with pytest.raises(Rejected, match="is not the name of a work queue of 'mine'"):
        reconciler.desire(plan_pb2.NodePlacement(replicas=[told]))
    assert reconciler.revision == 0
