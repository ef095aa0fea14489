"""What gateways say has gone wrong at nodes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

import structlog
from busbar_contracts.gateway.v1.status_pb2 import GatewayStatus
from busbar_errors import Rejected
from busbar_messaging import topology
from busbar_messaging.dispositions import decode
from busbar_messaging.watching import Deleted, Put, follow
from nats.aio.client import Client

from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.domain.quarantine import Vitals

log = structlog.get_logger()

_FRESH_S = topology.SUSPECT_AFTER.total_seconds()

Counts = Mapping[str, tuple[int, int]]
"""Node → attempts lost and answers garbled in a row."""


class TroubleReports:
    """The fleet's vitals: the picture of the fleet with what gateways say of it."""

    def __init__(self, client: Client, view: FleetView) -> None:
        self._client = client
        self._view = view
        self._by_gateway: dict[str, tuple[float, Counts]] = {}

    async def follow(self) -> None:
        """Keep up, for ever."""
        async for change in follow(self._client, topology.GATEWAYS.name):
            if isinstance(change, Deleted):
                self._by_gateway.pop(change.key, None)
            elif isinstance(change, Put):
                self._put(change)

    def vitals(self) -> Mapping[str, Vitals] | None:
        """As in Patients."""
        if self._view.missing:
            return None
        now = time.monotonic()
        lost, garbled = defaultdict[str, int](int), defaultdict[str, int](int)
        for heard_at, counts in self._by_gateway.values():
            if now - heard_at < _FRESH_S:
                for node, (lost_count, garbled_count) in counts.items():
                    lost[node] += lost_count
                    garbled[node] += garbled_count
        return self._view.table.vitals(now, lost, garbled)

    def _put(self, put: Put) -> None:
        try:
            status = decode(GatewayStatus, put.value)
        except Rejected as error:
            log.warning("entry not understood", bucket="gateways", key=put.key, error=error.reason)
            return
        counts = {one.node: (one.lost_count, one.garbled_count) for one in status.troubles}
        self._by_gateway[put.key] = (time.monotonic(), counts)
