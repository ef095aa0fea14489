"""Takes what is due at webhook endpoints and delivers it, a bounded number at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog
from busbar_errors import Rejected, Unavailable
from busbar_messaging.background import rest_s

from busbar_billing.adapters import metrics
from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.postgres.deliveries import PER_TENANT_AT_ONCE, Deliveries, Due
from busbar_billing.domain.web_targets import Target, TargetPolicy, read_target
from busbar_billing.domain.webhooks import Attempt, after_failure, signed_headers, signing_secret

log = structlog.get_logger()

AT_ONCE = 16
LOOK_INTERVAL = timedelta(milliseconds=500)
PRUNE_INTERVAL = timedelta(hours=1)


class Posts(Protocol):
    """Sends one message."""

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Attempt:
        """Return what came of it; never raises for what a receiver does."""
        ...


class Courier:
    """Delivers. `open_poster` is called when there is something to send for the first time."""

    def __init__(
        self,
        deliveries: Deliveries,
        events: Events,
        policy: TargetPolicy,
        service_secret: bytes,
        open_poster: Callable[[], Posts],
    ) -> None:
        self._deliveries = deliveries
        self._events = events
        self._policy = policy
        self._service_secret = service_secret
        self._open_poster = open_poster
        self._poster: Posts | None = None
        self._under_way: dict[asyncio.Task[None], str] = {}
        self._pruned = time.monotonic()

    async def run(self) -> None:
        """Deliver for ever."""
        try:
            while True:
                try:
                    await self._look()
                except Unavailable as error:
                    log.warning("webhooks not looked at", reason=error.reason)
                await self._wait()
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _look(self) -> None:
        """Begin with what is due and there is room for."""
        if time.monotonic() - self._pruned > PRUNE_INTERVAL.total_seconds():
            self._pruned = time.monotonic()
            await self._deliveries.prune()
        room = AT_ONCE - len(self._under_way)
        if not room:
            return
        counts = Counter(self._under_way.values())
        busy = [tenant for tenant, count in counts.items() if count >= PER_TENANT_AT_ONCE]
        for due in await self._deliveries.claim(room, busy):
            task = asyncio.create_task(self._deliver(due))
            self._under_way[task] = due.endpoint.tenant_id
            task.add_done_callback(self._under_way.pop)

    async def _wait(self) -> None:
        """Until an attempt ends, so that the next may begin, and no longer than the interval."""
        pause_s = rest_s(LOOK_INTERVAL.total_seconds())
        if self._under_way:
            await asyncio.wait(
                self._under_way, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED
            )
        else:
            await asyncio.sleep(pause_s)

    async def _deliver(self, due: Due) -> None:
        try:
            attempt = await self._attempt(due)
            if attempt.delivered:
                metrics.WEBHOOK_ATTEMPTS.labels("delivered").inc()
                await self._deliveries.delivered(due, attempt)
                return
            await self._conclude(due, attempt)
        except Unavailable as error:
            # The claim ends by itself; then it is sent once more, with the same id.
            log.warning("webhook not concluded", reason=error.reason)
        except Exception:
            log.exception("webhook failed", delivery_id=due.delivery_id)

    async def _conclude(self, due: Due, attempt: Attempt) -> None:
        luck = random.random()  # noqa: S311 - only spreads retries
        verdict = after_failure(attempt, due.number, due.failing_for, luck)
        metrics.WEBHOOK_ATTEMPTS.labels("failed" if verdict.retry_in else "given_up").inc()
        if await self._deliveries.failed(due, attempt, verdict):
            endpoint = due.endpoint
            log.warning(
                "webhook disabled", endpoint_id=endpoint.endpoint_id, reason=verdict.disable
            )
            self._events.webhook_disabled(endpoint.tenant_id, endpoint.endpoint_id, verdict.disable)

    async def _attempt(self, due: Due) -> Attempt:
        try:
            # Again: what is allowed may have changed since the endpoint was added.
            target = read_target(due.endpoint.url, self._policy)
        except Rejected as error:
            return Attempt(None, error.reason)
        self._poster = self._poster or self._open_poster()
        now = datetime.now(UTC)
        secrets = [
            signing_secret(self._service_secret, salt) for salt in due.endpoint.salts_at(now)
        ]
        body = due.payload.encode()
        headers = signed_headers(due.message_id, int(now.timestamp()), body, secrets)
        return await self._poster.post(target, headers, body)
