"""A NATS of our own, with a fresh bus for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from busbar_messaging import provision
from busbar_runtime.platform import Platform
from scheduler_harness import Bus


@pytest.fixture(scope="session")
def scheduler_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """NATS and the provisioner that keeps its streams."""
    platform = Platform(tmp_path_factory.mktemp("nats"), parts=["provisioner"])
    platform.launch()
    yield platform
    platform.shutdown()


@pytest.fixture
async def bus(scheduler_nats: Platform) -> Bus:
    """Streams and buckets, all of them empty."""
    made = Bus(scheduler_nats)
    settings = provision.ProvisionSettings(**made.settings("provisioner").model_dump())
    async with made.connected("provisioner") as client:
        jetstream = client.jetstream(timeout=5)
        for stream in await jetstream.streams_info():
            if stream.config.name:
                await jetstream.purge_stream(stream.config.name)
        for stream in await jetstream.streams_info():
            for consumer in await jetstream.consumers_info(str(stream.config.name)):
                if consumer.name.startswith("work-"):
                    await jetstream.delete_consumer(str(stream.config.name), consumer.name)
        await provision.apply(client, settings)
    return made
