"""How many messages are tried at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

from busbar_billing.adapters.bus.consuming import MESSAGES_MAX, Consumer, Refusal
from busbar_errors import Unavailable
from busbar_messaging.topology import ConsumerSpec
from harness.polling import eventually
from nats.aio.client import Client
from nats.aio.msg import Msg

WAITING, FEW = 100, 8


async def waiting(bus: Client) -> ConsumerSpec:
    """A consumer of a stream of its own, in which messages wait."""
    name = f"waiting-{uuid4().hex}"
    jetstream = bus.jetstream(timeout=5)
    await jetstream.add_stream(name=name, subjects=[name])
    spec = ConsumerSpec(name, name, name, timedelta(seconds=8), 10, 1_000)
    await jetstream.add_consumer(name, spec.config())
    for number in range(WAITING):
        await jetstream.publish(name, str(number).encode())
    return spec


async def able() -> None:
    """Nothing is known to be wrong."""


async def test_after_a_failure_one_message_is_tried_and_then_twice_as_many_each_time(
    bus: Client,
) -> None:
    sizes, failing = list[int](), [0, 2]

    async def handle(messages: Sequence[Msg]) -> Sequence[Refusal]:
        sizes.append(len(messages))
        if len(sizes) - 1 in failing:
            raise Unavailable("no space left")
        return []

    consumer = Consumer(bus, await waiting(bus), handle, able)
    running = asyncio.create_task(consumer.run())

    async def handled() -> int:
        return sum(size for at, size in enumerate(sizes) if at not in failing)

    await eventually(handled, within_s=20, what="all", until=lambda count: count >= WAITING)
    consumer.stop()
    await running

    most = MESSAGES_MAX
    for at, size in enumerate(sizes):
        assert size <= most, sizes
        most = 1 if at in failing else 2 * most
    assert max(sizes[failing[-1] :]) > FEW, sizes
