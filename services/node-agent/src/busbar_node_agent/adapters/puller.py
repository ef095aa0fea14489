"""Pulling work without a pause: raw pull requests on an inbox of our own.

`nats-py`'s fetch asks, waits and asks again; this keeps requests outstanding, so
that work is delivered the moment it is published. After anything that may have
voided the requests a new inbox is used: the server drops requests whose inbox
nobody listens to, so old and new ones never add up to more than the slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable

import structlog
from busbar_messaging.hot_connection import Deliveries, HotConnection
from busbar_messaging.topology import ACKS, LEAF_ACKS, ConsumerSpec, api_prefix, queue_name
from nats.aio.client import Client
from nats.errors import Error as NatsError

from busbar_node_agent.domain.bus_time import BusTime
from busbar_node_agent.usecases.lane import Lane

log = structlog.get_logger()

EXPIRES_S = 30.0
HEARTBEAT_S = 2.0
SILENCE_MAX_S = 4.5
"""What was asked of a server that dies is forgotten: noticed before another is elected, it costs
nothing more."""
_CHECK_INTERVAL_S = 1.0
_RETRY_AFTER_S = 0.25
_DRAIN_TIMEOUT_S = 2.0
_ACK = b"+ACK"
_NANOSECONDS = 1_000_000_000
_STORED_AT, _STORED_AT_WITH_DOMAIN = {9: 7}, 9
_REQUEST = b'{"batch":%%d,"expires":%d,"idle_heartbeat":%d}' % (
    int(EXPIRES_S * _NANOSECONDS),
    int(HEARTBEAT_S * _NANOSECONDS),
)
_STATUS = re.compile(rb"NATS/1\.0 +(\d+) *([^\r\n]*)")
_IDLE_HEARTBEAT = b"100"
_PENDING = re.compile(rb"\r\nNats-Pending-Messages: *(\d+)", re.IGNORECASE)


class WorkPuller:
    """Keeps a lane's free slots asked for at a consumer; hands what arrives to `on_work`."""

    def __init__(
        self,
        client: Client,
        hot: HotConnection,
        consumer: ConsumerSpec,
        lane: Lane,
        on_work: Callable[[bytes, Lane], None],
        *,
        domain: str = "",
        bus_time: BusTime | None = None,
        refusal: Callable[[], str] = str,
    ) -> None:
        self._client = client
        self._hot = hot
        self._asking = f"{api_prefix(domain)}.CONSUMER.MSG.NEXT.{consumer.stream}"
        self._queue = consumer.durable
        self._subject = f"{self._asking}.{self._queue}".encode()
        self._acks = LEAF_ACKS.encode() if domain else b""
        self._lane = lane
        self._on_work = on_work
        self._bus_time = bus_time or BusTime()
        self._refusal = refusal  # why nothing new may be taken; "" when it may
        self._deliveries: Deliveries | None = None
        self._inbox = b""
        self._broken = ""
        self._broke = asyncio.Event()
        self._renamed = asyncio.Event()
        self._heard_s = 0.0
        self._reconnects = 0
        self._waiting_logged = False
        self._stopped = False
        self._task: asyncio.Task[None] | None = None
        self._checker: asyncio.Task[None] | None = None
        lane.on_freed = self._ask

    def start(self) -> None:
        """Begin to pull."""
        self._task = asyncio.create_task(self._pull_for_ever(), name=f"pull:{self._subject!r}")
        self._checker = asyncio.create_task(self._check_for_ever())

    async def stop(self) -> None:
        """Ask for nothing more; what the server has already sent is still handed on."""
        self._stopped = True  # until Python 3.12 wait_for may swallow the cancellation
        self._break("stopped")
        for task in (self._task, self._checker):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._leave_inbox()
        self._lane.credits.forget()

    def adjust(self, slots: int, queue: str) -> None:
        """Use this many slots from now on, and pull from the queue of that name."""
        self._lane.credits.slots = slots
        name = queue_name(self._lane.deployment, queue)
        if name != self._queue:  # the one that was asked is gone
            self._queue = name
            self._subject = f"{self._asking}.{name}".encode()
            self._renamed.set()
            self._break("the queue has another name")
        self._ask()

    async def _pull_for_ever(self) -> None:
        while not self._stopped:
            try:
                await self._enter_inbox()
                self._ask()
                await self._broke.wait()
            except (NatsError, OSError) as error:
                self._break(repr(error))
            if not self._waiting_logged:
                log.info("pull interrupted", deployment=self._lane.deployment, reason=self._broken)
                self._waiting_logged = True
            await self._leave_inbox()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._renamed.wait(), _RETRY_AFTER_S)
            self._renamed.clear()

    def _break(self, reason: str) -> None:
        """What was asked for may never come: ask no more on this inbox."""
        self._broken = self._broken or reason
        self._broke.set()

    def _ask(self) -> None:
        if self._lane.doubted:
            if self._lane.credits.outstanding:
                self._break("the model is being checked")
            return
        count = self._lane.credits.wanted()
        if count == 0 or self._broken or self._deliveries is None:
            return
        if self._refusal():
            return
        if self._lane.credits.outstanding == 0:
            self._heard_s = time.monotonic()
        try:
            self._hot.publish(self._subject, _REQUEST % count, self._inbox)
        except NatsError as error:
            self._break(repr(error))
        else:
            self._lane.credits.asked(count)

    async def _enter_inbox(self) -> None:
        self._lane.credits.forget()
        self._broken = ""
        self._broke.clear()
        self._reconnects = self._client.stats["reconnects"]
        self._heard_s = time.monotonic()
        inbox = self._client.new_inbox()
        self._inbox = inbox.encode()
        self._deliveries = await self._hot.receive(inbox, self._on_delivery)

    async def _leave_inbox(self) -> None:
        """Give the inbox up, after what the server has already sent to it has been taken."""
        deliveries, self._deliveries = self._deliveries, None
        if deliveries is None:
            return
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                await deliveries.drain()
        except (NatsError, OSError, TimeoutError):
            with contextlib.suppress(NatsError, OSError):
                await deliveries.leave()

    def _on_delivery(self, reply: bytes, data: bytes, headers: bytes) -> None:
        self._heard_s = time.monotonic()
        if not reply:
            self._on_status(headers)
            return
        self._waiting_logged = False
        try:
            self._hot.publish(self._acks + reply[len(ACKS) :] if self._acks else reply, _ACK)
        except NatsError as error:  # unacknowledged, it is delivered again
            self._break(repr(error))
            return
        if (stored_unix_s := stored_at(reply)) is not None:
            self._bus_time.stored(stored_unix_s, self._heard_s)
        self._on_work(data, self._lane)
        self._ask()

    def _on_status(self, headers: bytes) -> None:
        """The server ended a pull request, or shows that it still has it."""
        told = _STATUS.match(headers)
        status, description = told.groups() if told else (b"", b"")
        if status == _IDLE_HEARTBEAT:
            self._waiting_logged = False
            return
        if pending := _PENDING.search(headers):
            self._lane.credits.returned(int(pending[1]))
            self._ask()
        else:  # no such consumer (yet), or it has just been deleted
            self._break(f"{status.decode()} {description.decode() or 'no responders'}")

    async def _check_for_ever(self) -> None:
        while True:
            # On the beat: all the pullers of an idle node wake up at once.
            now_s = asyncio.get_running_loop().time()
            await asyncio.sleep(_CHECK_INTERVAL_S - now_s % _CHECK_INTERVAL_S)
            if self._client.stats["reconnects"] != self._reconnects:
                self._break("reconnected")
            silent_s = time.monotonic() - self._heard_s
            if self._lane.credits.outstanding and silent_s > SILENCE_MAX_S:
                self._break(f"nothing heard for {silent_s:.0f} s")
            if not self._lane.credits.outstanding:
                self._ask()  # what was refused for a while may be taken again


def stored_at(reply: bytes) -> float | None:
    """When the stream stored a delivery, by its clock, from where it is to be acknowledged.

    $JS.ACK.<stream>.<consumer>.<count>.<sequence>.<sequence>.<nanoseconds>.<pending>, from 2.12 on
    with domain and account before the stream (NATS ADR-15).
    """
    parts = reply.split(b".")
    at = _STORED_AT.get(len(parts), _STORED_AT_WITH_DOMAIN)
    if len(parts) <= at or not parts[at].isdigit():
        return None
    return int(parts[at]) / _NANOSECONDS
