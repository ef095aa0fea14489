"""A bucket that two instances keep equal to the database: what is a wipe, and what is the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass

import pytest
from busbar_billing.adapters.bus.mirrored_bucket import MirroredBucket
from harness.polling import eventually
from nats.aio.client import Client

BUCKET = "two-write-it"
NAMES = [f"name-{number:03}" for number in range(200)]


@dataclass
class Says:
    """What the database says, of all names the same."""

    value: bytes

    async def entries(self, names: Collection[str]) -> Mapping[str, bytes]:
        return dict.fromkeys(names, self.value)

    async def pages(self) -> AsyncIterator[Mapping[str, bytes]]:
        yield dict.fromkeys(NAMES, self.value)


@pytest.fixture
async def database_says(bus: Client) -> AsyncIterator[Says]:
    await bus.jetstream(timeout=10).create_key_value(bucket=BUCKET, history=1)
    yield Says(b"first")
    await bus.jetstream(timeout=10).delete_key_value(BUCKET)


@contextlib.asynccontextmanager
async def hearing(bucket: MirroredBucket) -> AsyncIterator[None]:
    """Hears what is written until the end, and not what is written afterwards."""
    watch = asyncio.create_task(bucket.watch())
    await eventually(lambda: _complete(bucket), within_s=30, what="the bucket is read")
    yield
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def _complete(bucket: MirroredBucket) -> bool:
    return bucket.complete


async def test_what_another_instance_writes_anew_is_no_wipe(
    bus: Client, database_says: Says
) -> None:
    one, other = (MirroredBucket(bus, BUCKET, database_says, asyncio.Event()) for _ in range(2))
    await one.reconcile()
    async with hearing(other):
        pass
    database_says.value = b"second"
    rewritten = await one.reconcile()

    assert rewritten == len(NAMES)
    assert not await other.look_for_wipe()  # of which it has heard nothing yet
    assert not await one.look_for_wipe()


async def test_a_wipe_is_noticed_and_written_anew(bus: Client, database_says: Says) -> None:
    wanted = asyncio.Event()
    bucket = MirroredBucket(bus, BUCKET, database_says, wanted)
    await bucket.reconcile()
    await bus.jetstream(timeout=10).purge_stream(f"KV_{BUCKET}")

    noticed = await bucket.look_for_wipe()
    again = await bucket.look_for_wipe()
    rewritten = await bucket.reconcile()

    assert noticed
    assert wanted.is_set()
    assert not again
    assert rewritten == len(NAMES)
