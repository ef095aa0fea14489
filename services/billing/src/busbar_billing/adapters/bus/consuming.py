"""Taking messages from a durable consumer in batches: none is lost, none holds up the rest.

Plain nats-py: a batch is one database transaction, messages are acknowledged
one by one, and while the database is away nothing is pulled, so an outage
costs each message in hand one delivery and the others none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import end
from busbar_messaging.dead_letters import put_aside
from busbar_messaging.dispositions import DeadLetter, dispose
from busbar_messaging.topology import ConsumerSpec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.client import JetStreamContext
from nats.js.errors import Error as JetStreamError

from busbar_billing.adapters import metrics
from busbar_billing.adapters.bus.lag import Lag

log = structlog.get_logger()

MESSAGES_MAX = 1_000
_FIRST_MESSAGE_TIMEOUT_S = 5.0
_REST_TIMEOUT_S = 0.05
# Posting a hundred records costs little more than posting one, and nobody waits for it; but a
# tenant who sends one request wants to see its cost.
_GATHER_S = 0.1
_GATHER_BUSY_S = 0.8
_BUSY_MESSAGES = 10
_RETRY_PAUSE_S = 0.5
_FAILING_PAUSE_MAX_S = 10.0
"""Between attempts while the database answers but takes nothing, such as with a full disk."""
_NAK_UNAVAILABLE_S = 0.25
_FAR_BEHIND_S = 2.0
"""A message that waited so long, while a whole batch waits behind it, is of a backlog."""
_CAUGHT_UP_MESSAGES = 100


@dataclass(frozen=True, slots=True)
class Refusal:
    """A part of a message that can never be handled; the rest of it was."""

    message: Msg
    payload: bytes
    reason: str


Handler = Callable[[Sequence[Msg]], Awaitable[Sequence[Refusal]]]
"""Handles a batch as a whole or raises; returns what it had to leave out."""


class Consumer:
    """One durable consumer and what handles its messages."""

    def __init__(
        self,
        client: Client,
        spec: ConsumerSpec,
        handle: Handler,
        wait_until_able: Callable[[], Coroutine[Any, Any, None]],
        *,
        gather_s: float = _GATHER_S,
    ) -> None:
        """`gather_s` is how long to wait for more messages after the first while there are few."""
        self._client = client
        self._jetstream = client.jetstream(timeout=5)
        self._spec = spec
        self._handle = handle
        self._wait_until_able = wait_until_able
        self._stopping = asyncio.Event()
        self._quiet_gather_s = self._gather_s = gather_s
        self._failed_in_a_row = 0
        self._most = MESSAGES_MAX
        """One after a failure, for a delivery is used up with each attempt, and doubled with each
        success: what takes one message may still not take all that wait."""
        self._lag = Lag(spec.durable, self._waiting)
        self.far_behind = asyncio.Event()
        """Set while what comes now would wait behind a backlog."""
        self._last_of_backlog = False

    def stop(self) -> None:
        """Take no more messages; `run` returns when those in hand are done."""
        self._stopping.set()

    async def run(self) -> None:
        """Take and handle messages until `stop`. Survives whatever the bus does."""
        subscription = await self._jetstream.pull_subscribe_bind(
            self._spec.durable, stream=self._spec.stream
        )
        watching = asyncio.create_task(self._lag.watch(), name=f"lag of {self._spec.durable}")
        try:
            await self._take_turns(subscription)
        finally:
            await end([watching])
        with contextlib.suppress(NatsError, TimeoutError, OSError):
            await self._hand_back(subscription)

    async def _take_turns(self, subscription: JetStreamContext.PullSubscription) -> None:
        """Take and handle, again and again."""
        while await self._able():
            try:
                await self._pause()
                messages = await self._fetch(subscription)
                if messages:
                    await self._dispatch(messages)
                    if self._last_of_backlog:
                        self.far_behind.clear()
            except (NatsError, JetStreamError, TimeoutError, OSError) as error:
                log.warning("consumer interrupted", consumer=self._spec.durable, error=repr(error))
                await asyncio.sleep(_RETRY_PAUSE_S)

    async def _waiting(self) -> int:
        """Messages that are not handled yet, those handed back for later included."""
        info = await self._jetstream.consumer_info(self._spec.stream, self._spec.durable)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def _able(self) -> bool:
        """Wait until messages can be handled; False when `stop` comes first."""
        able = asyncio.create_task(self._wait_until_able())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({able, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if able.done():
                able.result()
            return not self._stopping.is_set()
        finally:
            able.cancel()
            stopping.cancel()

    async def _pause(self) -> None:
        """After repeated failure wait longer and longer, but no longer than until `stop`."""
        if self._failed_in_a_row < 2:  # noqa: PLR2004 - the first retry comes at once
            return
        doublings = min(self._failed_in_a_row - 2, 10)
        pause_s = min(_FAILING_PAUSE_MAX_S, _RETRY_PAUSE_S * 2**doublings)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _hand_back(self, subscription: JetStreamContext.PullSubscription) -> None:
        """Let others have at once what was delivered to us and not begun."""
        while subscription.pending_msgs:
            for message in await subscription.fetch(1, timeout=_REST_TIMEOUT_S):
                await message.nak()
        await subscription.unsubscribe()

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        """One message when it comes, and what comes right after it; [] when none came."""
        messages = await self._first(subscription)
        if not messages:
            self._lag.nothing_came()
        if not messages or self._most == 1:
            return messages
        # After a failure, and in a backlog, what is to be tried is there already.
        if self._most == MESSAGES_MAX and messages[0].metadata.num_pending < MESSAGES_MAX:
            await asyncio.sleep(self._gather_s)
        # Fewer come when another instance takes them.
        with contextlib.suppress(TimeoutError):
            messages += await subscription.fetch(self._most - 1, timeout=_REST_TIMEOUT_S)
        self._gather_s = _GATHER_BUSY_S if len(messages) >= _BUSY_MESSAGES else self._quiet_gather_s
        self._observe(messages[0], messages[-1].metadata.num_pending)
        return messages

    async def _first(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        """At most one message; [] when none came, or when told to stop."""
        fetching = asyncio.create_task(subscription.fetch(1, timeout=_FIRST_MESSAGE_TIMEOUT_S))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({fetching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not fetching.done():
                fetching.cancel()  # what it may have been given is handed back
            return await fetching
        except TimeoutError:
            return []
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
            return []
        finally:
            fetching.cancel()
            stopping.cancel()

    def _observe(self, oldest: Msg, waiting: int) -> None:
        age_s = self._lag.took(oldest.metadata.timestamp.timestamp(), waiting)
        old = age_s > _FAR_BEHIND_S
        if old and waiting >= MESSAGES_MAX:
            self.far_behind.set()
        self._last_of_backlog = not old or waiting < _CAUGHT_UP_MESSAGES

    async def _dispatch(self, messages: Sequence[Msg]) -> None:
        """Handle a batch; when it fails for another reason than an outage, one by one."""
        try:
            refusals = await self._handle(messages)
            for refusal in refusals:
                await self._dead_letter(refusal.message, refusal.payload, refusal.reason)
        except Unavailable as error:
            self._failed_in_a_row += 1
            self._most = 1
            log.warning("messages handed back", consumer=self._spec.durable, reason=error.reason)
            metrics.RETRIES.labels(self._spec.durable).inc(len(messages))
            for message in messages:
                await message.nak(delay=_NAK_UNAVAILABLE_S)
        except Exception as error:  # noqa: BLE001 - dispose() decides what becomes of a bug
            if len(messages) > 1:
                for message in messages:
                    await self._dispatch([message])
            else:
                self._failed_in_a_row = 0
                await self._dispose(messages[0], error)
        else:
            self._failed_in_a_row = 0
            self._most = min(MESSAGES_MAX, 2 * self._most)
            self._lag.handled()
            for message in messages:
                await message.ack()

    async def _dispose(self, message: Msg, error: Exception) -> None:
        deliveries = message.metadata.num_delivered
        decision = dispose(error, deliveries)
        log.error(
            "message failed",
            consumer=self._spec.durable,
            sequence=message.metadata.sequence.stream,
            deliveries=deliveries,
            decision=repr(decision),
            exc_info=error,
        )
        if isinstance(decision, DeadLetter):
            try:
                await self._dead_letter(message, message.data, decision.reason)
            except Unavailable:
                await message.nak(delay=_NAK_UNAVAILABLE_S)
            else:
                await message.term()
        else:
            metrics.RETRIES.labels(self._spec.durable).inc()
            await message.nak(delay=decision.delay_s)

    async def _dead_letter(self, message: Msg, payload: bytes, reason: str) -> None:
        log.error("dead letter", consumer=self._spec.durable, reason=reason)
        await put_aside(self._jetstream, "billing", self._spec, message, reason, payload=payload)
        metrics.DEAD_LETTERS.labels(self._spec.durable).inc()
