"""A month is closed when all usage is posted, by what the stream's leader holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from billing_parts import Gateway
from busbar_billing.adapters.bus.backlog import UsageStream
from busbar_messaging import provision
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.topology import BILLING_USAGE
from busbar_runtime.platform import Platform
from harness.polling import eventually
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo
from pydantic import SecretStr

STREAM, DURABLE = BILLING_USAGE.stream, BILLING_USAGE.durable
OF_NOBODY = "busbar.usage.r1.nobody"
AT_ONCE_S = 3.0


@dataclass(frozen=True)
class Usage:
    """A bus of a test's own, on which nobody posts but the test, and billing's view of it."""

    jetstream: JetStreamContext
    gateway: Gateway
    seen: UsageStream

    async def post(self) -> None:
        """Take the next message as billing does."""
        pulled = await self.jetstream.pull_subscribe_bind(DURABLE, STREAM)
        for message in await pulled.fetch(1, timeout=5):
            await message.ack_sync()
        await pulled.unsubscribe()

    async def take(self, subject: str) -> ConsumerInfo:
        """Let the consumer take only this; one whose copy of the stream lacks the last messages
        says of them, too, that nothing waits."""
        config = (await self.jetstream.consumer_info(STREAM, DURABLE)).config
        config.filter_subject = subject
        return await self.jetstream.add_consumer(STREAM, config)


@pytest.fixture
async def usage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Usage]:
    async with Platform(tmp_path_factory.mktemp("waiting"), parts=["nats"]) as platform:
        found = platform.endpoints

        def settings(user: str) -> BusSettings:
            password = SecretStr(found["nats_credentials"][user])
            return BusSettings(nats_url=found["nats"], nats_user=user, nats_password=password)

        own = settings("provisioner")
        client = await connect(own, "waiting-tests")
        await provision.apply(client, provision.ProvisionSettings(**own.model_dump()))
        billing: Client = await connect(settings("billing"), "waiting-tests")
        jetstream = client.jetstream(timeout=5)
        yield Usage(jetstream, Gateway(jetstream), UsageStream(billing))
        await close(billing)
        await close(client)


async def test_what_the_consumers_copy_of_the_stream_lacks_is_waited_for(usage: Usage) -> None:
    await usage.gateway.publish()
    await usage.post()
    await usage.take(OF_NOBODY)
    await usage.gateway.publish()
    lagging = await usage.jetstream.consumer_info(STREAM, DURABLE)
    assert (lagging.num_pending, lagging.num_ack_pending) == (0, 0)
    waiting = asyncio.create_task(usage.seen.require_posted())
    done, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not done
    await usage.take(BILLING_USAGE.filter_subject)
    await usage.post()

    await asyncio.wait_for(waiting, AT_ONCE_S)


@pytest.mark.parametrize("posted", [0, 1], ids=["nothing", "something"])
async def test_what_left_the_stream_unposted_is_not_waited_for(usage: Usage, posted: int) -> None:
    for _ in range(posted):
        await usage.gateway.publish()
        await usage.post()
    for _ in range(2):
        last = await usage.gateway.publish()
        await usage.jetstream.delete_msg(STREAM, last)

    async def none_pending() -> bool:
        return not (await usage.jetstream.consumer_info(STREAM, DURABLE)).num_pending

    await eventually(none_pending, within_s=10, what="the consumer knows")
    await asyncio.wait_for(usage.seen.require_posted(), AT_ONCE_S)


async def test_nothing_is_waited_for_in_an_empty_stream(usage: Usage) -> None:
    await asyncio.wait_for(usage.seen.require_posted(), AT_ONCE_S)
