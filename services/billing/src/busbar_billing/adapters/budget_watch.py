"""Tells people when a tenant has spent 80 % and 100 % of its month's budget."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import rest_s

from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.postgres.budgets import Budgets

log = structlog.get_logger()

LOOK_INTERVAL = timedelta(seconds=5)


async def watch_budgets(budgets: Budgets, events: Events) -> None:
    """Look every few seconds, for ever."""
    while True:
        try:
            for alert in await budgets.new_alerts():
                log.warning("budget reached", tenant=alert.tenant_id, percent=alert.percent)
                events.budget_reached(alert)
        except Unavailable as error:
            log.warning("budgets not looked at", reason=error.reason)
        await asyncio.sleep(rest_s(LOOK_INTERVAL.total_seconds()))
