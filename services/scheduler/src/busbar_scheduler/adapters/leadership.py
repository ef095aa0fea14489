"""Leading by a lease in the bus: one entry with a short life that its holder renews."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from busbar_errors import BusbarError, Conflict, Unavailable
from busbar_messaging import topology
from busbar_messaging.background import rest_s

from busbar_scheduler.adapters.buckets import Buckets
from busbar_scheduler.domain.publishing import fencing_token

log = structlog.get_logger()

_BUCKET = topology.LEADERS.name
_KEY = "scheduler"
_TTL_S = (topology.LEADERS.ttl or timedelta(seconds=5)).total_seconds()
_SAFETY_S = 1.0
"""We stop leading this long before the entry can expire."""
_RENEW_EVERY_S = 1.5
_CAMPAIGN_EVERY_S = 1.0

Elected = Callable[[int], Awaitable[None]]


class Leadership:
    """Campaigns for the lease and keeps it; `token` is the revision of the election.

    The server expires the entry TTL after its last renewal. We count from before the
    renewal was sent, on our own monotonic clock, so we always stop first, unless the
    process is frozen between asking and writing; that is what the board's CAS is for.
    """

    def __init__(
        self, buckets: Buckets, scheduler_id: str, highest_token: Callable[[], int] = lambda: 0
    ) -> None:
        self._buckets = buckets
        self._scheduler_id = scheduler_id
        self._highest_token = highest_token
        self._token: int | None = None
        self._revision = 0
        self._valid_until = 0.0
        self._resigned = False

    def token(self) -> int | None:
        """Our fencing token; None when we do not lead, or may not any more."""
        leads = not self._resigned and time.monotonic() < self._valid_until
        return self._token if leads else None

    def step_down(self) -> None:
        """Stop leading at once; the entry is left to expire."""
        self._token, self._valid_until = None, 0.0

    async def campaign(self, on_elected: Elected) -> None:
        """Lead whenever nobody else does, until resigning."""
        while not self._resigned:
            led = self._token is not None
            try:
                await (self._renew() if led else self._elect())
            except Unavailable as error:
                log.warning("leader lease not reached", error=error.reason)
            if self._token is not None and not led:
                log.info("elected", fencing_token=self._token)
                await on_elected(self._token)
            elif led and self.token() is None:
                log.warning("leadership lost")
                self.step_down()
            leads = self._token is not None
            await asyncio.sleep(rest_s(_RENEW_EVERY_S if leads else _CAMPAIGN_EVERY_S))

    async def resign(self) -> None:
        """Hand over at once, for good; used when stopping."""
        self._resigned = True
        if self._token is None:
            return
        self.step_down()
        with contextlib.suppress(BusbarError):
            await self._buckets.delete_if(_BUCKET, _KEY, self._revision)

    async def _elect(self) -> None:
        asked_at = time.monotonic()
        try:
            revision = await self._buckets.put_if(_BUCKET, _KEY, self._value(0), 0)
        except Conflict:
            entry = await self._buckets.get(_BUCKET, _KEY)
            if entry is None or entry.value != self._value(0):
                return
            revision = entry.revision  # an election of ours whose answer got lost
        self._revision = revision
        self._token = fencing_token(revision, self._highest_token())
        self._valid_until = asked_at + _TTL_S - _SAFETY_S

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        value = self._value(self._token or 0)
        try:
            revision = await self._buckets.put_if(_BUCKET, _KEY, value, self._revision)
        except Conflict:
            entry = await self._buckets.get(_BUCKET, _KEY)
            if entry is None or entry.value != value:
                self.step_down()
                log.warning("leadership lost", reason="the lease expired or was taken")
                return
            revision = entry.revision  # a renewal of ours whose answer got lost
        self._revision = revision
        self._valid_until = asked_at + _TTL_S - _SAFETY_S

    def _value(self, token: int) -> bytes:
        return json.dumps({"scheduler_id": self._scheduler_id, "fencing_token": token}).encode()
