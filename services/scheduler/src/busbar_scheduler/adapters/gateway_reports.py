"""What gateways report that they carry and what went wrong at nodes, in the domain's values."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping

import structlog
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus
from busbar_errors import Rejected
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Deleted, Put
from busbar_messaging.dispositions import decode
from busbar_messaging.watching import follow
from nats.aio.client import Client

from busbar_scheduler.domain.comparing import Outcomes, Tally
from busbar_scheduler.domain.demand import Carried, Gathering
from busbar_scheduler.domain.troubles import Troubles

log = structlog.get_logger()


class GatewayReports:
    """What every gateway last said."""

    def __init__(self, client: Client, gathering: Gathering) -> None:
        self._client = client
        self._gathering = gathering
        self._troubles = Troubles(topology.SUSPECT_AFTER.total_seconds())
        self.tally = Tally()

    async def follow(self) -> AsyncIterator[frozenset[str]]:
        """Keep up, for ever; yields deployments for which somebody has to wait."""
        async for change in follow(self._client, topology.GATEWAYS.name):
            if isinstance(change, Deleted):
                self._gathering.gone(change.key)
                self._troubles.gone(change.key)
                self.tally.gone(change.key)
            elif isinstance(change, Put):
                yield self._take(change)

    def troubles(self, now: float) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """By node, over the gateways that are heard: attempts lost, and answers garbled."""
        return self._troubles.look(now)

    def _take(self, put: Put) -> frozenset[str]:
        try:
            status = decode(GatewayStatus, put.value)
        except Rejected as error:
            log.warning("entry not understood", bucket="gateways", key=put.key, error=error.reason)
            return frozenset()
        now = time.monotonic()
        counts = {one.node: (one.lost_count, one.garbled_count) for one in status.troubles}
        self._troubles.heard(put.key, status.run_id, put.revision, counts, now)
        self.tally.heard(put.key, status.run_id, _versions(status), now)
        loads = {
            one.deployment: Carried(
                one.in_flight, one.queued, one.completed_count, one.unready_count
            )
            for one in status.loads
        }
        return self._gathering.heard(put.key, status.run_id, loads, now)


def _versions(status: GatewayStatus) -> dict[tuple[str, str], Outcomes]:
    return {
        (load.deployment, one.bundle_digest): Outcomes(
            one.answered_count,
            one.failed_count,
            one.timed_count,
            one.log_latency_sum,
            one.log_latency_square_sum,
        )
        for load in status.loads
        for one in load.versions
    }
