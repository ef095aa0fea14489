"""Keeps the fleet's tables as the buckets are, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from busbar_errors import Rejected
from busbar_messaging import topology
from busbar_messaging.background import together
from busbar_messaging.bucket_changes import Change, Current, Deleted, Put
from busbar_messaging.hearing import HearingClock
from busbar_messaging.watching import follow
from nats.aio.client import Client

from busbar_telemetry.adapters import bucket_decoding as decoding
from busbar_telemetry.domain.fleet import Fleet

log = structlog.get_logger()

Clock = Callable[[], float]
_FORGET_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Sink:
    """What to do with a bucket's entries. Without `remove` deletions are ignored."""

    put: Callable[[str, bytes], None]
    remove: Callable[[str], None] | None = None


class FleetWatch:
    """Follows every bucket that says something of the fleet.

    Nodes and gateways are not removed when their entries go: a server's restart
    empties those buckets. They turn suspect, lost, and are forgotten by age; nodes by
    what `hearing` shows, so that no silence of the bus is held against them.
    """

    def __init__(self, client: Client, fleet: Fleet, clock: Clock) -> None:
        self._client, self._fleet, self._clock = client, fleet, clock
        self.hearing = HearingClock()
        self._sinks = self._make_sinks()
        self.unread = set(self._sinks)
        self.malformed_count = 0

    def _make_sinks(self) -> dict[str, _Sink]:
        fleet, clock, hearing = self._fleet, self._clock, self.hearing

        def node(key: str, value: bytes) -> None:
            fleet.node_reported(_node_key(key), decoding.node_report(value), hearing.now_s)

        def lease(key: str, value: bytes) -> None:
            hearing.hear(clock())
            if key != topology.PULSE:
                report = decoding.lease_report(value)
                fleet.node_lived(_node_key(key), report, hearing.now_s)

        def gateway(key: str, value: bytes) -> None:
            fleet.gateway_reported(key, decoding.gateway_report(value), clock())

        def deployment(key: str, value: bytes) -> None:
            fleet.deployments.put(key, decoding.deployment_report(value))

        def route(key: str, value: bytes) -> None:
            fleet.routes.put(key, decoding.route_report(value))

        def placement(key: str, value: bytes) -> None:
            fleet.placements.put(_node_key(key), decoding.wanted_deployments(value))

        return {
            topology.NODES.name: _Sink(node),
            topology.LEASES.name: _Sink(lease),
            topology.GATEWAYS.name: _Sink(gateway),
            topology.DEPLOYMENTS.name: _Sink(deployment, fleet.deployments.remove),
            topology.ROUTES.name: _Sink(route, fleet.routes.remove),
            topology.PLACEMENTS.name: _Sink(placement, fleet.placements.remove),
        }

    @property
    def hears(self) -> bool:
        """Whether nodes' silence means anything now; also while nobody was ever heard of."""
        return not self.hearing.has_heard or not self.hearing.is_deaf(self._clock())

    async def run(self) -> None:
        """Follow until cancelled."""
        await together(*map(self._follow, self._sinks), self._forget())

    async def _follow(self, bucket: str) -> None:
        async for change in follow(self._client, bucket):
            self.take(bucket, change)

    def take(self, bucket: str, change: Change) -> None:
        """Take one change of a bucket."""
        try:
            self._take(bucket, change)
        except (Rejected, ValueError) as error:
            self.malformed_count += 1
            log.warning("bucket entry not understood", bucket=bucket, error=str(error))

    def _take(self, bucket: str, change: Change) -> None:
        sink = self._sinks[bucket]
        match change:
            case Put(key, value):
                sink.put(key, value)
            case Deleted(key) if sink.remove:
                sink.remove(key)
            case Current():
                self.unread.discard(bucket)
            case _:
                pass

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            self._fleet.forget_silent(self._clock(), self.hearing.now_s)


def _node_key(key: str) -> str:
    return topology.NodeId.parse(key).key
