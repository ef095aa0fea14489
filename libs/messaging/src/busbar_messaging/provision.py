"""Create, verify or keep up the bus: `python -m busbar_messaging.provision apply|verify|watch`.

`watch` applies for ever, so that what lives in memory is there again within
seconds of a server's restart. Exit status: 0 right, 1 differs, 2 no server.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any

import structlog
from busbar_errors import BusbarError, Rejected, Unavailable
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import (
    KeyValueConfig,
    ObjectStoreConfig,
    Placement,
    StorageType,
    StreamConfig,
)
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from pydantic import Field

from busbar_messaging import topology
from busbar_messaging.connection import BusSettings, close, connect
from busbar_messaging.site_streams import AWAY, SiteStreams

log = structlog.get_logger()

_WATCH_INTERVAL_S, _RETRY_S, _POLL_S = 10.0, 0.5, 0.25
_COMPARED = ("subjects", "retention", "storage", "max_age", "max_msgs_per_subject", "num_replicas")
_CHANGED = frozenset({"created", "updated"})
_CONSUMERS_BOUNDS = ("ack_wait", "max_deliver", "max_ack_pending")


class ProvisionSettings(BusSettings):
    """Which fleet to provision for: BUSBAR_REGIONS and BUSBAR_SITES are JSON lists."""

    regions: list[str] = Field(default=["r1"])
    sites: list[str] = Field(default=["r1/s1"], description="region/site pairs")
    replicas: int = Field(default=1, ge=1, le=5)
    leaf_nodes: bool = Field(default=False, description="each site has a NATS of its own")

    @property
    def site_pairs(self) -> list[tuple[str, str]]:
        """The sites as (region, site)."""
        pairs = [tuple(site.split("/")) for site in self.sites]
        if any(len(pair) != 2 for pair in pairs):  # noqa: PLR2004
            raise Rejected(f"BUSBAR_SITES must hold region/site pairs, not {self.sites}")
        return [(pair[0], pair[1]) for pair in pairs]


@dataclass(frozen=True, slots=True)
class Where:
    """How many copies of an asset there are, and in which region's servers."""

    replicas: int
    home: str
    """The region of what belongs to none; "" where there is one cluster only."""

    def in_region(self, region: str) -> Placement | None:
        """What the server is told; None where it has no choice."""
        return Placement(cluster=region or self.home) if self.home else None


@dataclass(slots=True)
class Report:
    """What was found and done: asset name → "ok", "created", "updated", or what differs."""

    assets: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def right(self) -> bool:
        """Whether nothing is missing or different; a site that is away is not wrong."""
        return all(state in {"ok", AWAY, *_CHANGED} for state in self.assets.values())

    @property
    def changed(self) -> bool:
        """Whether anything had to be done."""
        return any(state in _CHANGED for state in self.assets.values())


async def apply(client: Client, settings: ProvisionSettings) -> Report:
    """Bring the bus to the topology. Idempotent; never deletes."""
    return await _walk(client, settings, change=True)


async def verify(client: Client, settings: ProvisionSettings) -> Report:
    """Compare the bus with the topology and change nothing."""
    return await _walk(client, settings, change=False)


async def _walk(client: Client, settings: ProvisionSettings, *, change: bool) -> Report:
    jetstream, report = client.jetstream(timeout=5), Report()
    here = Where(settings.replicas, settings.regions[0] if settings.leaf_nodes else "")
    for spec in topology.streams(settings.regions, _unsourced(settings)):
        config = spec.config(settings.replicas).evolve(placement=here.in_region(spec.region))
        report.assets[f"stream {spec.name}"] = await _stream(jetstream, config, change=change)
    if settings.leaf_nodes:
        sites = SiteStreams(client, settings, here.replicas, here.in_region(""))
        report.assets.update(await sites.apply(settings.site_pairs, change=change))
    for bucket in topology.BUCKETS:
        state = await _bucket(jetstream, bucket, here, change=change)
        report.assets[f"bucket {bucket.name}"] = state
    for store in topology.OBJECT_STORES:
        state = await _object_store(jetstream, store, here, change=change)
        report.assets[f"object store {store.name}"] = state
    for consumer in topology.consumers(settings.site_pairs):
        state = await _consumer(jetstream, consumer, change=change)
        report.assets[f"consumer {consumer.stream}/{consumer.durable}"] = state
    return report


def _unsourced(settings: ProvisionSettings) -> list[tuple[str, str]]:
    """The sites whose cost records are published right here."""
    return [] if settings.leaf_nodes else settings.site_pairs


async def _stream(jetstream: JetStreamContext, wanted: StreamConfig, *, change: bool) -> str:
    name = wanted.name or ""
    try:
        actual = (await jetstream.stream_info(name)).config
    except NotFoundError:
        if not change:
            return "missing"
        await jetstream.add_stream(wanted)
        return "created"
    differing = [key for key in _COMPARED if getattr(actual, key) != getattr(wanted, key)]
    if not differing:
        return "ok"
    if not change:
        return f"differs in {', '.join(differing)}"
    await jetstream.update_stream(wanted)
    return "updated"


async def _bucket(
    jetstream: JetStreamContext, spec: topology.BucketSpec, here: Where, *, change: bool
) -> str:
    try:
        await jetstream.stream_info(f"KV_{spec.name}")
    except NotFoundError:
        if not change:
            return "missing"
        options: dict[str, Any] = {"ttl": spec.ttl.total_seconds()} if spec.ttl else {}
        await jetstream.create_key_value(
            KeyValueConfig(
                bucket=spec.name,
                history=1,
                storage=StorageType(spec.storage),
                max_bytes=spec.max_bytes,
                replicas=here.replicas,
                placement=here.in_region(""),
                **options,
            )
        )
        return "created"
    return "ok"


async def _object_store(
    jetstream: JetStreamContext, spec: topology.ObjectStoreSpec, here: Where, *, change: bool
) -> str:
    try:
        await jetstream.stream_info(f"OBJ_{spec.name}")
    except NotFoundError:
        if not change:
            return "missing"
        config = ObjectStoreConfig(
            bucket=spec.name,
            max_bytes=spec.max_bytes,
            storage=StorageType.FILE,
            replicas=here.replicas,
            placement=here.in_region(""),
        )
        await jetstream.create_object_store(spec.name, config)
        return "created"
    return "ok"


async def _consumer(
    jetstream: JetStreamContext, spec: topology.ConsumerSpec, *, change: bool
) -> str:
    wanted = spec.config()
    try:
        actual = (await jetstream.consumer_info(spec.stream, spec.durable)).config
    except NotFoundError:
        if not change:
            return "missing"
        await jetstream.add_consumer(spec.stream, wanted)
        return "created"
    differing = [key for key in _CONSUMERS_BOUNDS if getattr(actual, key) != getattr(wanted, key)]
    if not differing:
        return "ok"
    if not change:
        return f"differs in {', '.join(differing)}"
    await jetstream.add_consumer(spec.stream, wanted)
    return "updated"


async def _watch(client: Client, settings: ProvisionSettings) -> None:
    """Apply after every reconnect at once, and now and then for what else may vanish."""
    while True:
        reconnects, right = client.stats["reconnects"], False
        try:
            report = await apply(client, settings)
            right = report.right
            if report.changed:
                made = [name for name, state in report.assets.items() if state != "ok"]
                log.info("bus provisioned", assets=made)
        except (NatsError, APIError, TimeoutError, OSError) as error:
            log.warning("bus not provisioned", error=repr(error))
        waited_s = 0.0
        while waited_s < (_WATCH_INTERVAL_S if right else _RETRY_S):
            await asyncio.sleep(_POLL_S)
            waited_s += _POLL_S
            if client.stats["reconnects"] != reconnects:
                break


async def run(command: str) -> int:
    """Carry out one command; return the exit status."""
    settings = ProvisionSettings()  # pyright: ignore[reportCallIssue]
    try:
        client = await connect(settings, "busbar-provision")
    except Unavailable as error:
        sys.stderr.write(f"{error.reason}\n")
        return 2
    try:
        if command == "watch":
            await _watch(client, settings)
        report = await (apply if command == "apply" else verify)(client, settings)
    except (APIError, BusbarError) as error:
        sys.stderr.write(f"the bus refused: {error}\n")
        return 1
    finally:
        await close(client)
    for name, state in report.assets.items():
        sys.stdout.write(f"{state:10} {name}\n")
    return 0 if report.right else 1


def main() -> int:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["apply", "verify", "watch"])
    return asyncio.run(run(parser.parse_args().command))


if __name__ == "__main__":
    sys.exit(main())
