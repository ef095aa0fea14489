"""Noticing lost attempts: silence of a node, streams made anew, a bus that was away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Protocol

import structlog
from busbar_messaging.background import end, rest_s

from busbar_gateway.domain.attempts import UNSTARTED_SILENCE_S, UNTAKEN_S
from busbar_gateway.usecases.absence import AbsentNodes
from busbar_gateway.usecases.pending import Lost, NotPublished, Pending

log = structlog.get_logger()

TICK_S = 0.1
ACKNOWLEDGED_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.5


class StreamWatch(Protocol):
    """What the watchdog needs from the bus."""

    @property
    def connected(self) -> bool:
        """As in WorkBus."""
        ...

    @property
    def reconnects(self) -> int:
        """Changes whenever the connection was lost and found again."""
        ...

    def epoch(self, region: str) -> str:
        """As in WorkBus."""
        ...

    def ask_for(self, node: str, absent: Callable[[], None]) -> None:
        """Call `absent` if nobody listens for what the node is told."""
        ...

    async def taken(self, region: str, sequences: frozenset[int]) -> frozenset[int] | None:
        """Which of these are no longer in the region's stream; None when it cannot be told."""
        ...


class NotTakenThere(Protocol):
    """Told of work that nobody takes where it waits."""

    def __call__(self, pending: Pending, now: float, *, seen: bool) -> None:
        """As Dispatcher.withdraw."""
        ...


class Watchdog:
    """Looks at everything that is out, ten times a second."""

    def __init__(
        self,
        bus: StreamWatch,
        pending: dict[bytes, Pending],
        region: str,
        *,
        not_taken: NotTakenThere,
    ) -> None:
        self._bus = bus
        self._not_taken = not_taken
        self._pending = pending
        self._region = region
        self._reconnects = bus.reconnects
        self._looked = 0.0
        self._away = False
        self._looked_at_stream = False
        self._absent = AbsentNodes(bus.ask_for)
        self._looks: dict[str, asyncio.Task[None]] = {}
        """One at a time into each region: it takes seconds where nobody answers."""

    async def run(self) -> None:
        """Tick for ever."""
        try:
            while True:
                await asyncio.sleep(rest_s(TICK_S))
                try:
                    await self.tick(monotonic())
                except Exception:
                    log.exception("watchdog tick failed")
        finally:
            await end(self._looks.values())

    async def tick(self, now: float) -> None:
        """End the attempts that are lost, so that their requests go out again."""
        if not self._bus.connected:
            self._away = True
            return
        if self._away or self._bus.reconnects != self._reconnects:
            self._away, self._reconnects = False, self._bus.reconnects
            self._after_absence(now)
            self._looked_at_stream = False
        if not self._looked_at_stream:  # to know a stream that was made anew from the old one
            self._look_into(self._region, ())
        self._absent.look(self._pending.values(), now)
        unstarted: dict[str, list[Pending]] = {}
        for work in list(self._pending.values()):
            if work.outcome is not None or not work.attempts.current:
                continue
            if not work.attempts.last_sign:
                self._unstarted(work, now, unstarted)
            elif work.attempts.lost(now, taken=False):
                work.end(Lost(f"{work.attempts.node} fell silent"))
        if unstarted and now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            for region, works in unstarted.items():
                self._look_into(region, works)

    def _look_into(self, region: str, works: Iterable[Pending]) -> None:
        if region not in self._looks:
            look = self._looks[region] = asyncio.create_task(self._look(region, works))
            look.add_done_callback(partial(self._looked_into, region))

    def _looked_into(self, region: str, look: asyncio.Task[None]) -> None:
        del self._looks[region]
        if not look.cancelled() and (error := look.exception()) is not None:
            log.error("watchdog look failed", region=region, exc_info=error)

    def _after_absence(self, now: float) -> None:
        """Frames could not come while the bus was away: count silence from now."""
        self._absent.bus_was_away(now)
        for work in self._pending.values():
            if work.outcome is not None or not work.attempts.current:
                continue
            if work.attempts.last_sign:
                work.attempts.last_sign = now
            elif not work.sequence and now - work.attempts.published > TICK_S:
                work.end(NotPublished("the bus was away"))

    @staticmethod
    def _unstarted(work: Pending, now: float, found: dict[str, list[Pending]]) -> None:
        if not work.sequence:
            if now - work.attempts.published > ACKNOWLEDGED_WITHIN_S:
                work.end(NotPublished("the stream did not acknowledge in time", work.region))
        elif now - work.attempts.published > UNSTARTED_SILENCE_S:
            found.setdefault(work.region, []).append(work)

    async def _look(self, region: str, works: Iterable[Pending]) -> None:
        attempts = {work: work.attempts.current for work in works}
        gone = await self._bus.taken(region, frozenset(work.sequence for work in works))
        if gone is None and not self._bus.connected:  # it is not the region's doing
            return
        self._looked_at_stream |= region == self._region and gone is not None
        epoch, now = self._bus.epoch(region), monotonic()
        for work, attempt in attempts.items():
            if work.attempts.current != attempt or work.attempts.last_sign:
                continue
            if gone is None:
                if now - work.attempts.published > UNTAKEN_S:
                    self._not_taken(work, now, seen=False)
            elif work.epoch and work.epoch != epoch:
                work.end(Lost("the stream that held it is gone"))
            elif work.attempts.lost(now, taken=work.sequence in gone):
                work.end(Lost("taken by a node that said nothing", unheard=True))
            elif work.sequence not in gone and now - work.attempts.published > UNTAKEN_S:
                self._not_taken(work, now, seen=True)
