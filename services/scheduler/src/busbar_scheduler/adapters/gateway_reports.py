"""What gateways report that they carry, in the domain's values."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import structlog
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus
from busbar_errors import Rejected
from busbar_messaging import topology
from busbar_messaging.dispositions import decode
from busbar_messaging.watching import Deleted, Put, follow
from nats.aio.client import Client

from busbar_scheduler.domain.demand import Carried, Gathering

log = structlog.get_logger()


async def follow_gateways(client: Client, gathering: Gathering) -> AsyncIterator[frozenset[str]]:
    """Keep the gathering current, for ever; yields deployments for which somebody has to wait."""
    async for change in follow(client, topology.GATEWAYS.name):
        if isinstance(change, Deleted):
            gathering.gone(change.key)
        elif isinstance(change, Put):
            yield _take(change, gathering)


def _take(put: Put, gathering: Gathering) -> frozenset[str]:
    try:
        status = decode(GatewayStatus, put.value)
    except Rejected as error:
        log.warning("entry not understood", bucket="gateways", key=put.key, error=error.reason)
        return frozenset()
    loads = {
        one.deployment: Carried(one.in_flight, one.queued, one.completed_count, one.unready_count)
        for one in status.loads
    }
    return gathering.heard(put.key, status.run_id, loads, time.monotonic())
