"""Keeping the picture of the fleet by following the buckets, and knowing when it is not current."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from busbar_messaging import topology
from busbar_messaging.background import end, rest_s
from busbar_messaging.bucket_changes import Current, Deleted, Put
from busbar_messaging.watching import follow
from nats.aio.client import Client
from nats.errors import Error as NatsError

from busbar_scheduler.adapters.fleet_table import BUCKETS, FleetTable
from busbar_scheduler.adapters.gateway_reports import GatewayReports
from busbar_scheduler.domain.autoscaling import Autoscaler
from busbar_scheduler.domain.comparing import Tally
from busbar_scheduler.domain.demand import Gathering
from busbar_scheduler.domain.fleet import Deployment, Placements, Snapshot
from busbar_scheduler.domain.publishing import Published
from busbar_scheduler.domain.quarantine import Vitals
from busbar_scheduler.domain.tracks import expanded

_SCALE_EVERY_S = 0.5
_S_PER_MINUTE = 60
_PULSE_SUBJECT = topology.entry_subject(topology.LEASES, topology.PULSE, "")


class FleetView:
    """A FleetTable that follows the bus; `changed` is set whenever a plan may have to change."""

    def __init__(self, client: Client) -> None:
        self.table = FleetTable()
        self.changed = asyncio.Event()
        self.autoscaler = Autoscaler()
        self._gathering = Gathering(topology.SUSPECT_AFTER.total_seconds())
        self._gateways = GatewayReports(client, self._gathering)
        self._scaled_at = -_SCALE_EVERY_S
        self._client = client
        self._read_at_reconnect: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow every bucket for as long as the context lasts."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._follow(bucket.name), name=f"follow:{bucket.name}")
                for bucket in (*BUCKETS, topology.CLAIMS)  # which no plan depends on
            ]
            tasks.append(group.create_task(self._follow_demand(), name="follow:demand"))
            tasks.append(group.create_task(self._beat(), name="pulse"))
            try:
                yield
            finally:
                await end(tasks)

    @property
    def missing(self) -> list[str]:
        """Buckets that are not read completely at present."""
        if not self._client.is_connected:
            return ["the bus is not connected"]
        now = self._client.stats["reconnects"]
        unread = [one.name for one in BUCKETS if self._read_at_reconnect.get(one.name) != now]
        return [f"bucket {name} is not read yet" for name in unread]

    def gather(self) -> Snapshot | None:
        """The fleet as it is now; None while the picture is not current."""
        now = time.monotonic()
        if self.missing:
            return None
        self.table.listening()
        if not self.table.settled:
            return None
        snapshot = self.table.snapshot(now, _now_unix_ms())
        if now - self._scaled_at >= _SCALE_EVERY_S:
            self._scaled_at = now
            minute = int(time.time()) // _S_PER_MINUTE
            self.autoscaler.step(snapshot, self._gathering.look(now), now, minute)
        return expanded(replace(snapshot, demands=dict(self.autoscaler.demands)))

    def look(self) -> Snapshot:
        """The fleet as last seen, for showing it to people."""
        return expanded(self._declared())

    def current(self) -> Snapshot | None:
        """As in Trials."""
        known = not self.missing and self.table.settled
        return self._declared() if known else None

    @property
    def tally(self) -> Tally:
        """As in Trials."""
        return self._gateways.tally

    def _declared(self) -> Snapshot:
        snapshot = self.table.snapshot(time.monotonic(), _now_unix_ms())
        return replace(snapshot, demands=dict(self.autoscaler.demands))

    def vitals(self) -> Mapping[str, Vitals] | None:
        """As in Patients."""
        if self.missing:
            return None
        now = time.monotonic()
        return self.table.vitals(now, *self._gateways.troubles(now))

    def declared(self) -> tuple[Deployment, ...]:
        """Every deployment."""
        return self.table.declared()

    def placements(self) -> Placements:
        """What each node was told to hold."""
        return self.table.published().placements

    def published(self) -> Published:
        """What stands in the buckets."""
        return self.table.published()

    def until_next_change_s(self) -> float:
        """Seconds until silence alone changes the picture."""
        return self.table.until_next_change_s(time.monotonic())

    def record(self, bucket: str, key: str, value: bytes, revision: int) -> None:
        """Take in what we have written or read ourselves, ahead of the watch."""
        self.table.put(bucket, key, value, revision, time.monotonic())

    def record_deletion(self, bucket: str, key: str) -> None:
        """Take in what we have deleted ourselves, ahead of the watch."""
        self.table.deleted(bucket, key)

    async def _beat(self) -> None:
        """Write the pulse for ever. It is not asked whether it was stored: we hear it, or not."""
        while True:
            if self._client.is_connected:
                with contextlib.suppress(NatsError, OSError):
                    await self._client.publish(_PULSE_SUBJECT, b"")
            await asyncio.sleep(rest_s(topology.PULSE_INTERVAL.total_seconds()))

    async def _follow_demand(self) -> None:
        async for waited_for in self._gateways.follow():
            if any(self.autoscaler.is_asleep(name) for name in waited_for):
                self._scaled_at = -_SCALE_EVERY_S
                self.changed.set()

    async def _follow(self, bucket: str) -> None:
        async for change in follow(self._client, bucket):
            match change:
                case Put(key, value, revision):
                    matters = self.table.put(bucket, key, value, revision, time.monotonic())
                case Deleted(key):
                    matters = self.table.deleted(bucket, key)
                case Current():
                    self._read_at_reconnect[bucket] = self._client.stats["reconnects"]
                    matters = True
            if matters:
                self.changed.set()


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000
