"""Tells tenants that their balance is low, or that requests are refused for it.

Looked at are the tenants that were just charged or refused, every second, and all of
them every minute: nothing is added to the transactions that post charges.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import rest_s

from busbar_billing.adapters import metrics
from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.postgres.balance_watches import PAGE_TENANTS, BalanceWatches
from busbar_billing.domain.balance_alerts import Watched, moved
from busbar_billing.usecases.post_usage import RatedRecord

log = structlog.get_logger()

LOOK_INTERVAL = timedelta(seconds=1)
SWEEP_INTERVAL = timedelta(minutes=1)


class BalanceWatch:
    """Watches balances. What it noticed and did not look at yet is found by the next sweep."""

    def __init__(self, watches: BalanceWatches, events: Events) -> None:
        self._watches = watches
        self._events = events
        self._noticed: dict[str, int | None] = {}
        self._swept: float | None = None

    def usage_posted(self, charged: Sequence[RatedRecord]) -> None:
        """These records were charged."""
        for one in charged:
            self._noticed.setdefault(one.record.tenant_id, None)

    def refused(self, tenant_id: str, below_nanos: int) -> None:
        """A gateway refused a request of the tenant because its balance was less."""
        self._noticed[tenant_id] = max(self._noticed.get(tenant_id) or 0, below_nanos)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.warning("balances not looked at", reason=error.reason)
            await asyncio.sleep(rest_s(LOOK_INTERVAL.total_seconds()))

    async def look(self) -> None:
        """Look at whom something happened to, or at everybody when it is time."""
        due = self._swept is None or time.monotonic() - self._swept > SWEEP_INTERVAL.total_seconds()
        if due:
            self._swept = time.monotonic()
        noticed, self._noticed = self._noticed, {}
        tenant_ids = list(noticed)
        for start in range(0, len(tenant_ids), PAGE_TENANTS):
            some = tenant_ids[start : start + PAGE_TENANTS]
            await self._move(await self._watches.of_tenants(some), noticed)
        if due:
            await self._sweep()

    async def _sweep(self) -> None:
        after = ""
        while found := await self._watches.page(after):
            await self._move(found, {})
            after = found[-1].tenant_id

    async def _move(
        self, found: Sequence[Watched], refused_below: Mapping[str, int | None]
    ) -> None:
        elsewhere = {
            one.tenant_id: refused_below.get(one.tenant_id)
            for one in found
            if moved(one, refused_below.get(one.tenant_id)) != one
        }
        if not elsewhere:
            return
        for watched, level in await self._watches.move(elsewhere):
            metrics.BALANCES_TOLD.labels(level.value).inc()
            log.info("balance told", tenant=watched.tenant_id, level=level.value)
            self._events.balance_told(watched, level)
