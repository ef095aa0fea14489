"""How far behind a consumer is, as its metrics say, also while it takes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from busbar_messaging.background import rest_s
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from busbar_billing.adapters import metrics

_LOOK_EVERY_S = 2.0
_UNSEEN_S = 7.0
"""Longer than a pull waits for a first message."""


class Lag:
    """Of one durable consumer."""

    def __init__(self, consumer: str, waiting: Callable[[], Awaitable[int]]) -> None:
        """`waiting` asks the bus how many messages are not handled yet."""
        self._messages = metrics.LAG_MESSAGES.labels(consumer)
        self._seconds = metrics.LAG_SECONDS.labels(consumer)
        self._waiting = waiting
        self._seen_at = time.monotonic()
        self._oldest_unix_s = 0.0
        """Of the oldest message that is known to wait; 0 without one."""

    def took(self, oldest_unix_s: float, waiting: int) -> float:
        """Messages were taken, so many wait behind them; how old the oldest is, in seconds."""
        self._oldest_unix_s = oldest_unix_s
        return self._say(waiting)

    def handled(self) -> None:
        """What was taken has been handled."""
        self._oldest_unix_s = 0.0

    def nothing_came(self) -> None:
        """A pull waited in vain, so nothing waits."""
        self._oldest_unix_s = 0.0
        self._say(0)

    async def watch(self) -> None:
        """Ask the bus while nothing is taken, such as in an outage of the database. For ever."""
        while True:
            await asyncio.sleep(rest_s(_LOOK_EVERY_S))
            seen_at = self._seen_at
            if time.monotonic() < seen_at + _UNSEEN_S:
                continue
            try:
                waiting = await self._waiting()
            except (NatsError, JetStreamError, TimeoutError, OSError):
                continue  # how much waits cannot be known without the bus
            if self._seen_at == seen_at:
                if not self._oldest_unix_s:
                    self._oldest_unix_s = time.time()
                self._say(waiting)
                self._seen_at = seen_at

    def _say(self, waiting: int) -> float:
        age_s = max(0.0, time.time() - self._oldest_unix_s) if self._oldest_unix_s else 0.0
        self._seconds.set(age_s)
        self._messages.set(waiting)
        self._seen_at = time.monotonic()
        return age_s
