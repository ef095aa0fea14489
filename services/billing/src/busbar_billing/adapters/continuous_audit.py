"""The audit that never ends: what is new every few seconds, everything once a day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import rest_s

from busbar_billing.adapters import metrics
from busbar_billing.adapters.auditor import SETTLED_AFTER, id_at, moment_of
from busbar_billing.adapters.on_duty import OnDuty
from busbar_billing.adapters.postgres.audit_walks import AuditWalks
from busbar_billing.domain.audit.findings import Breach, Report
from busbar_billing.usecases.audit import Books
from busbar_billing.usecases.audit_walk import Walk, follow, sweep

log = structlog.get_logger()

NEW, SWEEP = "new", "sweep"
FOLLOW_SHARE, SWEEP_SHARE = 0.5, 0.2
"""Of the interval between two looks, at most so much goes into each walk."""
FOLLOWED_AFTER = timedelta(seconds=30)
"""What is committed later than this behind the mark is looked at by the sweep."""
TOLD_AT_ONCE_MAX = 100


class Alarm(Protocol):
    """Who is told."""

    def audit_breached(self, breach: Breach, found_unix_ms: int) -> None:
        """The auditor found something that must not be."""
        ...


@dataclass(slots=True)
class ContinuousAudit:
    """Looks every `every`, begins at zero every `sweep_every`; one instance at a time does. Should
    two do so, the sums that they keep differ from the balances, which makes them look again."""

    books: Books
    walks: AuditWalks
    alarm: Alarm
    every: timedelta
    sweep_every: timedelta
    duty: OnDuty
    followed_after: timedelta = FOLLOWED_AFTER
    _following: Walk | None = None
    _sweeping: Walk | None = None

    async def run(self) -> None:
        """Look for ever. Nothing that is found, and no failure, stops it."""
        while True:
            try:
                if not self.duty.held:
                    self._following = self._sweeping = None
                    await self.duty.begin()
                await self.look(datetime.now(UTC))
            except Unavailable as error:
                self._following = self._sweeping = None
                log.warning("not audited", reason=error.reason)
            except Exception:
                self._following = self._sweeping = None
                log.exception("the audit failed")
            await asyncio.sleep(rest_s(self.every.total_seconds()))

    async def look(self, now: datetime) -> None:
        """Check what is new, and a part of everything."""
        settled = id_at(now - self.followed_after)
        report = Report()
        walk = self._following or await self.walks.load(NEW) or Walk(now)
        if moment_of(walk.mark.transfer) > now:
            walk = await self._anew(NEW, moment_of(walk.mark.transfer), now)
        self._following = walk
        caught_up = await follow(self.books, walk, settled, report, self._within(FOLLOW_SHARE))
        await self._tell(report)
        await self.walks.save(NEW, walk)
        metrics.AUDIT_LAG.set((now - moment_of(walk.mark.transfer)).total_seconds())
        await self._sweep(now)
        breaches = await self.walks.counts()
        for check, count in breaches.items():
            metrics.AUDIT_BREACHES.labels(check.value).set(count)
        if caught_up and not any(breaches.values()):
            metrics.AUDIT_CLEAN.set(now.timestamp())

    async def _sweep(self, now: datetime) -> None:
        walk = self._sweeping or await self.walks.load(SWEEP)
        if walk is None:
            ended = await self.walks.ended_at(SWEEP)
            # By the database's clock, which may be ahead of ours, and may have been far ahead.
            if ended is not None and abs(now - ended) < self.sweep_every:
                return
            walk = Walk(now)
        elif walk.began_at > now:
            walk = await self._anew(SWEEP, walk.began_at, now)
        self._sweeping = walk
        report = Report()
        settled = id_at(walk.began_at - SETTLED_AFTER)
        done = await sweep(self.books, walk, settled, report, self._within(SWEEP_SHARE))
        await self._tell(report)
        await self.walks.save(SWEEP, walk)
        if done:
            await self.walks.end(SWEEP, walk)
            self._sweeping = None
            metrics.AUDIT_SWEPT.set(now.timestamp())
            log.info("audited from zero", began_at=walk.began_at.isoformat())

    async def _anew(self, name: str, ahead: datetime, now: datetime) -> Walk:
        """A clock was ahead of what it is now: nobody knows what came behind the walk since."""
        log.warning("clock ran back: audit begins at zero", walk=name, was_at=ahead.isoformat())
        await self.walks.forget(name)
        return Walk(now)

    async def _tell(self, report: Report) -> None:
        """Count what was looked at; tell of each breach once."""
        for check, finding in report.findings:
            metrics.AUDIT_ROWS.labels(check.value).inc(finding.rows)
        fresh = await self.walks.note(report.breaches)
        for breach in fresh[:TOLD_AT_ONCE_MAX]:
            log.error(
                "audit breached",
                check=breach.check.value,
                subject=breach.subject,
                detail=breach.detail,
            )
            self.alarm.audit_breached(breach, time.time_ns() // 1_000_000)
        if len(fresh) > TOLD_AT_ONCE_MAX:
            log.error("audit breached, and not each told", more=len(fresh) - TOLD_AT_ONCE_MAX)

    def _within(self, share: float) -> Callable[[], bool]:
        until = time.monotonic() + share * self.every.total_seconds()
        return lambda: time.monotonic() < until
