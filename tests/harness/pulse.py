"""The pulse among the leases, where no scheduler runs that would write it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from busbar_messaging import topology
from nats.aio.client import Client

_SUBJECT = topology.entry_subject(topology.LEASES, topology.PULSE, "")


@contextlib.asynccontextmanager
async def pulse(client: Client) -> AsyncIterator[None]:
    """Write it as schedulers do, until the end of the block."""

    async def beat() -> None:
        while True:
            await client.publish(_SUBJECT, b"")
            await asyncio.sleep(topology.PULSE_INTERVAL.total_seconds())

    beating = asyncio.create_task(beat(), name="pulse")
    try:
        yield
    finally:
        beating.cancel()
