"""Putting what a gateway would have charged onto the bus."""

from __future__ import annotations

import asyncio
import secrets

from busbar_messaging import topology
from busbar_messaging.connection import BusSettings, close, connect
from busbar_runtime.platform import Platform


def publish_usage(platform: Platform, payload: bytes) -> None:
    """Put something into USAGE as a gateway."""
    found = platform.endpoints

    async def once() -> None:
        client = await connect(
            BusSettings(
                nats_url=found["nats"],
                nats_user="gateway",
                nats_password=found["nats_credentials"]["gateway"],
            ),
            "test",
        )
        headers = {"Nats-Msg-Id": secrets.token_hex(8)}
        subject = topology.usage_subject("r1", "g1")
        await client.jetstream(timeout=5).publish(subject, payload, headers=headers)
        await close(client)

    asyncio.run(once())
