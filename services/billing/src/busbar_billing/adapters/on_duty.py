"""Work that one instance does for all: held by a lease, so that another goes on when it dies."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import rest_s
from uuid_utils.compat import uuid7

from busbar_billing.adapters.postgres.duties import Duties, Duty

log = structlog.get_logger()

HELD_FOR = timedelta(seconds=8)
RENEWED_EVERY = timedelta(seconds=2)
"""A killed instance's duty is another's within the sum of both."""
_GIVE_UP_S = 2.0


@dataclass(slots=True)
class OnDuty:
    """Keeps trying to have a duty, and to keep it.

    Two instances may believe to have it for as long as one of them is stopped between asking and
    working, so the work itself must bear that: this spares doing it twice, and nothing more.
    """

    duties: Duties
    duty: Duty
    held_for: timedelta = HELD_FOR
    renewed_every: timedelta = RENEWED_EVERY
    _holder: str = field(default_factory=lambda: uuid7().hex)
    _until: float = 0.0
    _taken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def held(self) -> bool:
        """Whether the duty is this instance's now."""
        return time.monotonic() < self._until

    async def begin(self) -> None:
        """Return when the duty is this instance's."""
        while not self.held:
            self._taken.clear()
            await self._taken.wait()

    async def run(self) -> None:
        """Ask for it for ever; when cancelled give it up, so that another need not wait."""
        try:
            while True:
                await self._ask()
                await asyncio.sleep(rest_s(self.renewed_every.total_seconds()))
        finally:
            await self._give_up()

    async def _ask(self) -> None:
        asked = time.monotonic()
        try:
            taken = await self.duties.take(self.duty, self._holder, self.held_for)
        except Unavailable as error:
            log.warning("duty not asked for", duty=self.duty.value, reason=error.reason)
            return
        was_held = self.held
        self._until = asked + self.held_for.total_seconds() if taken else 0.0
        if taken:
            self._taken.set()
        if taken != was_held:
            log.info("duty taken" if taken else "duty is another's", duty=self.duty.value)

    async def _give_up(self) -> None:
        if not self.held:
            return
        self._until = 0.0
        try:
            async with asyncio.timeout(_GIVE_UP_S):
                await self.duties.give_up(self.duty, self._holder)
        except (Unavailable, TimeoutError) as error:
            log.warning("duty not given up", duty=self.duty.value, reason=repr(error))
