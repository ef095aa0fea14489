"""Pulling work without a pause: raw pull requests on an inbox of our own.

`nats-py`'s fetch asks, waits and asks again; this keeps requests outstanding, so
that work is delivered the moment it is published. After anything that may have
voided the requests a new inbox is used: the server drops requests whose inbox
nobody listens to, so old and new ones never add up to more than the slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable

import structlog
from busbar_messaging.topology import ConsumerSpec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from busbar_node_agent.usecases.lane import Lane

log = structlog.get_logger()

EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
SILENCE_MAX_S = 11.0
_CHECK_INTERVAL_S = 1.0
_RETRY_AFTER_S = 0.25
_DRAIN_TIMEOUT_S = 2.0
_ACK = b"+ACK"
_NANOSECONDS = 1_000_000_000
_IDLE_HEARTBEAT = "100"
_PENDING = "Nats-Pending-Messages"


class WorkPuller:
    """Keeps a lane's free slots asked for at a consumer; hands what arrives to `on_work`."""

    def __init__(
        self,
        client: Client,
        consumer: ConsumerSpec,
        lane: Lane,
        on_work: Callable[[bytes, Lane], None],
    ) -> None:
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.durable}"
        self._lane = lane
        self._on_work = on_work
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._hungry = asyncio.Event()
        self._broken = ""
        self._heard_s = 0.0
        self._reconnects = 0
        self._closing = False
        self._waiting_logged = False
        self._task: asyncio.Task[None] | None = None
        self._checker: asyncio.Task[None] | None = None
        lane.on_freed = self._hungry.set

    def start(self) -> None:
        """Begin to pull."""
        self._task = asyncio.create_task(self._pull_for_ever(), name=f"pull:{self._subject}")
        self._checker = asyncio.create_task(self._check_for_ever())

    async def stop(self) -> None:
        """Ask for nothing more; what the server has already sent is still handed on."""
        self._closing = True
        for task in (self._task, self._checker):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._leave_inbox()
        self._lane.credits.forget()

    def adjust(self, slots: int) -> None:
        """Use this many slots from now on."""
        self._lane.credits.slots = slots
        self._hungry.set()

    async def _pull_for_ever(self) -> None:
        while True:
            try:
                await self._enter_inbox()
                while not self._broken:
                    await self._ask()
                    await self._hungry.wait()
                    self._hungry.clear()
            except (NatsError, OSError) as error:
                self._broken = repr(error)
            if not self._waiting_logged:
                log.info("pull interrupted", subject=self._subject, reason=self._broken)
                self._waiting_logged = True
            await self._leave_inbox()
            await asyncio.sleep(_RETRY_AFTER_S)

    async def _ask(self) -> None:
        count = self._lane.credits.wanted()
        if count == 0:
            return
        if self._lane.credits.outstanding == 0:
            self._heard_s = asyncio.get_running_loop().time()
        self._lane.credits.asked(count)
        request = {
            "batch": count,
            "expires": int(EXPIRES_S * _NANOSECONDS),
            "idle_heartbeat": int(HEARTBEAT_S * _NANOSECONDS),
        }
        await self._client.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)

    async def _enter_inbox(self) -> None:
        self._lane.credits.forget()
        self._broken = ""
        self._reconnects = self._client.stats["reconnects"]
        self._heard_s = asyncio.get_running_loop().time()
        self._inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(self._inbox, cb=self._on_message)

    async def _leave_inbox(self) -> None:
        """Give the inbox up, after what the server has already sent to it has been taken."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                await subscription.drain()
        except (NatsError, OSError, TimeoutError):
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        if not message.reply:
            self._on_status(message)
            return
        self._waiting_logged = False
        await self._client.publish(message.reply, _ACK)
        self._on_work(message.data, self._lane)
        self._hungry.set()

    def _on_status(self, message: Msg) -> None:
        """The server ended a pull request, or shows that it still has it."""
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == _IDLE_HEARTBEAT:
            self._waiting_logged = False
            return
        pending = headers.get(_PENDING, "")
        if pending.isdigit():
            self._lane.credits.returned(int(pending))
        else:  # no such consumer (yet), or it has just been deleted
            self._broken = f"{status} {headers.get('Description', 'no responders')}"
        self._hungry.set()

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_S)
            if self._client.stats["reconnects"] != self._reconnects:
                self._broken = self._broken or "reconnected"
            silent_s = asyncio.get_running_loop().time() - self._heard_s
            if self._lane.credits.outstanding and silent_s > SILENCE_MAX_S:
                self._broken = self._broken or f"nothing heard for {silent_s:.0f} s"
            if self._broken:
                self._hungry.set()
