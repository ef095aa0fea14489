"""Cost records on their way from sites: a stream at each site, and the hub's, sourced from it.

A hub reads a site's stream by its numbers, from the last that it has. A stream that was lost or
lost its end gives out the same numbers again, and the hub would skip what stands under them without
a word. So the stream's name holds an epoch: when what the hub has read last is not what the site
has under that number, the site gets a new stream, which begins with what the old one took since.
Records that come twice that way have the same node, run and sequence; billing keeps one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from busbar_errors import Unavailable
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import (
    ExternalStream,
    Placement,
    RawStreamMsg,
    StreamConfig,
    StreamInfo,
    StreamSource,
)
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from busbar_messaging import topology
from busbar_messaging.connection import BusSettings, close, connect

log = structlog.get_logger()

AWAY = "away"
"""The site does not answer; what it needs is done when it is back."""

_SITE_TIMEOUT_S = 2.0
_SILENT_MAX = timedelta(seconds=5)
"""Nothing of a source for so long, its heartbeats neither: the server may wait two minutes before
it tries again, unless it is told to begin anew."""
_CLOCKS_APART_MAX = timedelta(hours=1)
_ORIGIN = "Nats-Stream-Source"
_MESSAGE_ID = "Nats-Msg-Id"
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Origin:
    """What the hub has read last: the site's stream, the number there, the message, and when."""

    stream: str
    sequence: int
    message_id: str
    time: datetime


class SiteStreams:
    """Makes and keeps the streams of cost records of sites that have a NATS of their own."""

    def __init__(
        self, hub: Client, settings: BusSettings, replicas: int, placement: Placement | None
    ) -> None:
        self._hub: JetStreamContext = hub.jetstream(timeout=5)
        self._settings = settings
        self._replicas = replicas
        self._placement = placement

    async def apply(self, sites: Sequence[tuple[str, str]], *, change: bool) -> dict[str, str]:
        """Bring all of them to the topology, side by side; asset → state as in a Report."""
        found = await asyncio.gather(*[self._apply(*site, change=change) for site in sites])
        return {name: state for states in found for name, state in states.items()}

    async def _apply(self, region: str, site: str, *, change: bool) -> dict[str, str]:
        name = topology.measured_stream(region, site).name
        try:
            info = await self._hub.stream_info(name)
        except NotFoundError:
            if not change:
                return {f"stream {name}": "missing"}
            info = await self._hub.add_stream(self._sourced(region, site, 1))
            hub_state = "created"
        else:
            hub_state = "ok"
        inbox = topology.provisioner_inbox(region, site)
        try:
            client = await connect(
                self._settings.model_copy(update={"nats_inbox": inbox}), f"provision {site}"
            )
        except Unavailable:
            return {f"stream {name}": hub_state, f"site {region}/{site}": AWAY}
        try:
            state = await self._apply_at(client, info, region, site, change=change)
        except (NatsError, APIError, TimeoutError, OSError) as error:
            log.info("site does not answer", site=f"{region}/{site}", error=repr(error))
            state = AWAY
        finally:
            await close(client)
        return {f"stream {name}": hub_state, f"site {region}/{site}": state}

    async def _apply_at(
        self, client: Client, hub: StreamInfo, region: str, site: str, *, change: bool
    ) -> str:
        domain = topology.site_domain(region, site)
        leaf = client.jetstream(domain=domain, timeout=_SITE_TIMEOUT_S)
        epoch = _epoch_of(hub)
        spec = topology.site_measured_stream(region, site, epoch)
        origin = await self._origin(hub)
        read = origin if origin and origin.stream == spec.name else None
        may_have_read = bool(hub.state.messages) and (origin is None or read is not None)
        try:
            present: StreamInfo | None = await leaf.stream_info(spec.name)
        except NotFoundError:
            present = None
        if present is None:
            if not change:
                return "missing"
            # One that the hub has read from, and that is gone, must not come again.
            await self._begin(leaf, region, site, epoch + 1 if may_have_read else epoch)
            return "created"
        if read and await _lost_its_end(leaf, present, read):
            if not change:
                return "has lost its end"
            log.error("site lost cost records that were read", site=domain, epoch=epoch)
            await self._succeed(leaf, present, region, site, read)
            return "updated"
        if change and _is_silent(hub):
            await self._poke(hub, region, site, epoch)
            return "updated"
        return "ok"

    async def _origin(self, hub: StreamInfo) -> Origin | None:
        """Where the hub's last record came from; None before the first, and after a dead letter."""
        if not hub.state.messages:
            return None
        message = await self._hub.get_msg(hub.config.name or "", seq=hub.state.last_seq)
        headers = message.headers or {}
        stream, _, sequence = headers.get(_ORIGIN, "").partition(" ")
        if not sequence or message.time is None:
            return None
        number = int(sequence.split(" ")[0])
        return Origin(stream.partition(":")[0], number, _id_of(message), message.time)

    async def _begin(self, leaf: JetStreamContext, region: str, site: str, epoch: int) -> None:
        spec = topology.site_measured_stream(region, site, epoch)
        await leaf.add_stream(spec.config(1))
        await self._hub.update_stream(self._sourced(region, site, epoch))
        log.info("site stream begun", stream=spec.name)

    async def _succeed(
        self, leaf: JetStreamContext, old: StreamInfo, region: str, site: str, read: Origin
    ) -> None:
        """Close a site's stream and begin the next, with what the old one took since `read`."""
        name = old.config.name or ""
        await leaf.update_stream(old.config.evolve(subjects=[name]))
        spec = topology.site_measured_stream(region, site, _epoch_in(name) + 1)
        since = StreamSource(name=name)
        # nats-py gives times on as they are, and the server wants RFC 3339.
        since.opt_start_time = (read.time - _CLOCKS_APART_MAX).isoformat()  # pyright: ignore[reportAttributeAccessIssue]
        await leaf.add_stream(spec.config(1).evolve(sources=[since]))
        await self._hub.update_stream(self._sourced(region, site, _epoch_in(spec.name)))
        log.info("site stream succeeded", old=name, new=spec.name)

    async def _poke(self, hub: StreamInfo, region: str, site: str, epoch: int) -> None:
        """Make the hub try a source again now."""
        wanted = self._sourced(region, site, epoch)
        await self._hub.update_stream(wanted.evolve(sources=[]))
        await self._hub.update_stream(wanted)
        log.info("source begun anew", stream=hub.config.name)

    def _sourced(self, region: str, site: str, epoch: int) -> StreamConfig:
        """The hub's stream of a site's cost records; dead letters come back under its subject."""
        config = topology.measured_stream(region, site).config(self._replicas)
        source = StreamSource(
            name=topology.site_measured_stream(region, site, epoch).name,
            external=ExternalStream(
                api=topology.api_prefix(topology.site_domain(region, site)),
                deliver=topology.sourced_subject(region, site),
            ),
        )
        return config.evolve(sources=[source], placement=self._placement)


async def _lost_its_end(leaf: JetStreamContext, present: StreamInfo, read: Origin) -> bool:
    """Whether the site has something else, or nothing yet, where the hub has read already."""
    if present.state.last_seq < read.sequence:
        return True
    try:
        message = await leaf.get_msg(present.config.name or "", seq=read.sequence)
    except NotFoundError:
        return False  # too old to be there still
    return _id_of(message) != read.message_id


def _id_of(message: RawStreamMsg) -> str:
    return (message.headers or {}).get(_MESSAGE_ID, "")


def _is_silent(hub: StreamInfo) -> bool:
    """Whether a source shows no signs of life; the server says -1 for one never heard of."""
    quiet_ns = [source.active or 0 for source in hub.sources or []]
    return any(ns < 0 or ns > _SILENT_MAX.total_seconds() * _NS_PER_S for ns in quiet_ns)


def _epoch_of(hub: StreamInfo) -> int:
    """The epoch that the hub sources."""
    return max((_epoch_in(source.name) for source in hub.config.sources or []), default=1)


def _epoch_in(stream: str) -> int:
    return int(stream.rpartition("_")[2])
