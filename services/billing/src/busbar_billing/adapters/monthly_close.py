"""The close that happens by itself: every tenant's month, some hours after it is over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog
from busbar_errors import Conflict, Unavailable
from busbar_messaging.background import rest_s

from busbar_billing.adapters import metrics
from busbar_billing.adapters.on_duty import OnDuty
from busbar_billing.usecases.statements import StatementStore, UsageBacklog, close_all_due

log = structlog.get_logger()

_TOLD_AT_ONCE_MAX = 100


@dataclass(slots=True)
class MonthlyClose:
    """Looks every `every` for months that were over `delay` ago. Any number of instances may: a
    month has one statement, whoever was first."""

    store: StatementStore
    backlog: UsageBacklog
    duty: OnDuty
    delay: timedelta
    every: timedelta

    async def run(self) -> None:
        """Look for ever. No failure stops it."""
        while True:
            await self.duty.begin()
            try:
                await self.look()
            except (Conflict, Unavailable) as error:
                log.warning("months not closed", reason=error.reason)
            except Exception:
                log.exception("closing months failed")
            await asyncio.sleep(rest_s(self.every.total_seconds()))

    async def look(self) -> None:
        """Close what is due."""
        over_at = await self.store.now() - self.delay
        done = await close_all_due(self.store, self.backlog, over_at, lambda: self.duty.held)
        metrics.STATEMENTS_ISSUED.inc(done.issued)
        metrics.STATEMENTS_OVERDUE.set(len(done.failed))
        if done.issued:
            log.info("months closed", statements=done.issued)
        for tenant_id, reason in list(done.failed.items())[:_TOLD_AT_ONCE_MAX]:
            log.error("month not closed", tenant=tenant_id, reason=reason)
