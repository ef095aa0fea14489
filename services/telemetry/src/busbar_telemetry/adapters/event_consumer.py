"""Reads the EVENTS stream through telemetry's durable consumer."""

from __future__ import annotations

import asyncio

import structlog
from busbar_errors import Unavailable
from busbar_messaging import topology
from busbar_messaging.dead_letters import put_aside
from busbar_messaging.dispositions import DeadLetter, dispose
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.client import JetStreamContext
from nats.js.errors import Error as JetStreamError

from busbar_telemetry.adapters.event_decoding import read_fact
from busbar_telemetry.domain.events import Charges, RecentEvents

log = structlog.get_logger()

_BATCH = 64
_WAIT_S = 5.0  # also how long a pull that a restarted server forgot goes unnoticed
_RETRY_S = 1.0
_NAK_UNAVAILABLE_S = 1.0


class EventConsumer:
    """Remembers events; what cannot be read goes to the dead letters with its reason."""

    def __init__(self, client: Client, events: RecentEvents) -> None:
        self._jetstream: JetStreamContext = client.jetstream(timeout=5)
        self._events = events
        self.dead_letter_count = 0

    async def run(self) -> None:
        """Read until cancelled, through restarts of the server."""
        while True:
            try:
                await self._read()
            except (NatsError, JetStreamError, TimeoutError, OSError) as error:
                log.warning("events not read", error=repr(error))
            await asyncio.sleep(_RETRY_S)

    async def _read(self) -> None:
        spec = topology.TELEMETRY_EVENTS
        subscription = await self._jetstream.pull_subscribe_bind(spec.durable, stream=spec.stream)
        try:
            while True:
                try:
                    messages = await subscription.fetch(_BATCH, timeout=_WAIT_S)
                except TimeoutError:
                    await subscription.consumer_info()  # raises when the consumer is gone
                    continue
                for message in messages:
                    await self._take(message)
        finally:
            await subscription.unsubscribe()

    async def _take(self, message: Msg) -> None:
        metadata = message.metadata
        sequence = metadata.sequence.stream
        try:
            at_unix_ms = int(metadata.timestamp.timestamp() * 1000)
            fact = read_fact(message.subject, message.data, sequence, at_unix_ms)
        except Exception as error:  # noqa: BLE001  dispose decides for every kind
            await self._give_up(message, error, metadata.num_delivered or 1)
            return
        if isinstance(fact, Charges):
            self._events.charged(sequence, fact)
        else:
            self._events.add(fact)
        await message.ack()

    async def _give_up(self, message: Msg, error: Exception, deliveries: int) -> None:
        decision = dispose(error, deliveries)
        if not isinstance(decision, DeadLetter):
            log.error("event handler failed", subject=message.subject, exc_info=error)
            await message.nak(delay=decision.delay_s)
            return
        spec = topology.TELEMETRY_EVENTS
        try:
            await put_aside(self._jetstream, "telemetry", spec, message, decision.reason)
        except Unavailable as unavailable:
            log.warning("dead letter not stored", reason=unavailable.reason)
            await message.nak(delay=_NAK_UNAVAILABLE_S)
            return
        await message.term()
        self.dead_letter_count += 1
        log.warning("event dead-lettered", subject=message.subject, reason=decision.reason)
