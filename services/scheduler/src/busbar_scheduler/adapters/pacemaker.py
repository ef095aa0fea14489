"""When cycles run: at once when something changed, when silence makes a change, each second."""

from __future__ import annotations

import asyncio
import time

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import rest_s
from prometheus_client import Counter, Gauge, Histogram

from busbar_scheduler.adapters.fleet_view import FleetView
from busbar_scheduler.usecases.cycle import Cycle, Outcome

log = structlog.get_logger()

_EVERY_S = 1.0
_APART_S = 0.05
"""Changes that come closer together than this share a cycle."""
_FAILURES_LOGGED_EVERY_S = 5.0

CYCLES = Counter("busbar_scheduler_cycles_total", "Scheduling cycles by outcome.", ["outcome"])
CYCLE_SECONDS = Histogram("busbar_scheduler_cycle_seconds", "Duration of a scheduling cycle.")
LEADING = Gauge("busbar_scheduler_leading", "1 while this scheduler leads.")


class Pacemaker:
    """Runs the cycle for ever; a cycle that fails is tried again, whatever the failure was."""

    def __init__(self, cycle: Cycle, view: FleetView) -> None:
        self._cycle = cycle
        self._view = view
        self._logged_at = -_FAILURES_LOGGED_EVERY_S

    async def run(self) -> None:
        """Run cycles until cancelled."""
        while True:
            self._view.changed.clear()
            with CYCLE_SECONDS.time():
                outcome = await self._run_once()
            CYCLES.labels(outcome).inc()
            LEADING.set(outcome not in {Outcome.STANDBY.value, Outcome.DEPOSED.value})
            again = outcome == Outcome.CONFLICT.value
            await asyncio.sleep(_APART_S)
            if not again:
                await self._wait()

    async def _run_once(self) -> str:
        try:
            return (await self._cycle.run_once()).value
        except Unavailable as error:
            self._log("cycle not finished", error.reason)
            return "unavailable"
        except Exception as error:  # a bug in one cycle must not end scheduling
            log.exception("cycle failed", error=repr(error))
            return "failed"

    async def _wait(self) -> None:
        # A little later than the moment, so that the silence is long enough when we look.
        until_change_s = self._view.until_next_change_s() + 0.01
        try:
            async with asyncio.timeout(min(rest_s(_EVERY_S), until_change_s)):
                await self._view.changed.wait()
        except TimeoutError:
            return

    def _log(self, event: str, reason: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _FAILURES_LOGGED_EVERY_S:
            self._logged_at = now
            log.warning(event, reason=reason)
