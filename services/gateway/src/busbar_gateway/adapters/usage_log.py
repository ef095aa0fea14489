"""The billable records: neighbours committed together, one publish at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from time import monotonic

import structlog
import uuid_utils
from busbar_contracts.gateway.v1.usage_pb2 import UsageRecord, UsageRecorded, UsageVoid
from busbar_errors import Unavailable
from busbar_messaging.connection import publish_durably
from nats.aio.client import Client

from busbar_gateway.adapters.commit_table import CommitTable, Slot

log = structlog.get_logger()

BATCH_MAX = 512
_COMPANY = 4
"""A commit waits for so many records where the last one had them: fewer messages and fsyncs for
all. Fewer customers than that never wait for each other."""
_GATHER_S = 0.001
"""No longer, though, see docs/decisions/0078."""
_DRAIN_POLL_S = 0.02
_ANSWER_WITHIN = timedelta(seconds=0.5)
"""A customer waits: what was sent while the stream had no leader is sent again soon. A stream that
takes longer to answer is heard all the same."""


class _State(Enum):
    QUEUED = auto()
    SENT = auto()
    DURABLE = auto()
    DELIVERED = auto()
    FAILED = auto()


@dataclass(slots=True, eq=False)
class Charge:
    """A record or its void on the way into the stream."""

    slot: Slot
    record: UsageRecord | None = None
    void: UsageVoid | None = None
    durable: asyncio.Future[None] | None = None
    """Whoever waits; None when nobody does, then it is tried until it succeeds."""
    deadline: float = math.inf
    """When whoever waits gives up, on the event loop's clock."""
    state: _State = _State.QUEUED


class UsageLog:
    """Group commit into the USAGE stream. `run` must be running."""

    def __init__(
        self,
        client: Client,
        table: CommitTable,
        *,
        subject: str,
        gateway_id: str,
        give_up_after: timedelta,
        committed: Callable[[int, float], None],
    ) -> None:
        self._jetstream = client.jetstream(timeout=2)
        self._table = table
        self._subject = subject
        self._gateway_id = gateway_id
        self._give_up_after = give_up_after
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Charge] = deque()
        self._sent: list[Charge] = []
        self._wake = asyncio.Event()
        self._company = asyncio.Event()
        self._crowded = False
        for slot in table.left_over:
            self._void(slot, "gateway stopped before delivery")

    def claim(self, request_id: bytes, tenant_id: str) -> Slot:
        """Reserve the place of a charge; raises Unavailable when too many are under way."""
        return self._table.claim(request_id, tenant_id)

    async def commit(
        self, slot: Slot, record: UsageRecord, deadline: float, *, stays: Callable[[], bool]
    ) -> Charge:
        """Return when the record is durable.

        Raises Unavailable when it cannot be made so and TimeoutError at
        `deadline` on the event loop's clock; then, and on cancellation unless
        it `stays`, the charge has been taken back already.
        """
        durable = self._loop.create_future()
        charge = Charge(slot, record, durable=durable, deadline=deadline)
        self._enqueue(charge)
        try:
            await durable
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and stays():
                self._go_on(charge)
            else:
                self.take_back(charge, "not durable in time")
            raise
        return charge

    def _go_on(self, charge: Charge) -> None:
        """Nobody waits any more for this charge, and it is to become durable."""
        charge.durable = None
        if charge.state is _State.DURABLE:
            self._table.clear(charge.slot)
        elif charge.state is _State.FAILED:
            self._enqueue(Charge(charge.slot, charge.record))

    def commit_later(self, slot: Slot, record: UsageRecord) -> None:
        """Make the record durable in the background, however long it takes."""
        self._enqueue(Charge(slot, record))

    def delivered(self, charge: Charge) -> None:
        """As in charging.UsageLog."""
        if charge.state is _State.DURABLE:
            charge.state = _State.DELIVERED
            self._table.clear(charge.slot)

    def take_back(self, charge: Charge, reason: str) -> None:
        """As in charging.UsageLog."""
        if charge.state is _State.DELIVERED:
            slot = charge.slot
            try:
                charge.slot = self._table.claim(slot.request_id, slot.tenant_id)
            except Unavailable as error:
                request_id = slot.request_id.hex()
                log.error("charge not taken back", request_id=request_id, reason=error.reason)  # noqa: TRY400
                return
        if charge.state is _State.QUEUED:
            with contextlib.suppress(ValueError):
                self._queue.remove(charge)
            self._table.clear(charge.slot)
        else:
            self._void(charge.slot, reason)
        charge.state = _State.FAILED

    def expire(self, now: float) -> None:
        """Fail those who have waited past their deadline."""
        for charge in (*self._queue, *self._sent):
            if charge.deadline <= now and charge.durable is not None and not charge.durable.done():
                charge.durable.set_exception(TimeoutError())

    def release(self, slot: Slot) -> None:
        """Free a slot for which nothing was enqueued."""
        self._table.clear(slot)

    async def run(self) -> None:
        """Publish what accumulates, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                if self._crowded and len(self._queue) < _COMPANY:
                    await self._gather()
                    if not self._queue:  # all of it was taken back meanwhile
                        break
                size = min(BATCH_MAX, len(self._queue))
                self._crowded = size >= _COMPANY
                self._sent = [self._queue.popleft() for _ in range(size)]
                try:
                    await self._publish(self._sent)
                finally:
                    self._sent = []

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._queue and not self._sent and not self._table.occupied_count

    async def drain(self, grace: timedelta) -> None:
        """Wait until nothing is under way, at most `grace`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace.total_seconds()):
                while self._queue or self._sent:
                    await asyncio.sleep(_DRAIN_POLL_S)

    def close(self) -> None:
        """Let go of the table; nothing is charged from now on."""
        self._table.close()

    async def _gather(self) -> None:
        self._company.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_S):
                await self._company.wait()

    def _enqueue(self, charge: Charge) -> None:
        self._queue.append(charge)
        self._wake.set()
        if len(self._queue) >= _COMPANY:
            self._company.set()

    def _void(self, slot: Slot, reason: str) -> None:
        void = UsageVoid(request_id=slot.request_id, tenant_id=slot.tenant_id, reason=reason)
        self._enqueue(Charge(slot, void=void))

    async def _publish(self, batch: list[Charge]) -> None:
        message = UsageRecorded(gateway_id=self._gateway_id)
        for charge in batch:
            charge.state = _State.SENT
            if charge.record is not None:
                message.records.append(charge.record)
            if charge.void is not None:
                message.voids.append(charge.void)
        began = monotonic()
        try:
            await publish_durably(
                self._jetstream,
                self._subject,
                message.SerializeToString(),
                message_id=uuid_utils.uuid7().hex,
                give_up_after=self._give_up_after,
                answer_within=_ANSWER_WITHIN,
            )
        except Unavailable as error:
            log.error("usage not durable", records=len(batch), reason=error.reason)  # noqa: TRY400
            for charge in batch:
                self._failed(charge, error)
            return
        self._committed(len(batch), monotonic() - began)
        for charge in batch:
            self._succeeded(charge)

    def _succeeded(self, charge: Charge) -> None:
        charge.state = _State.DURABLE
        if charge.durable is None:
            self._table.clear(charge.slot)
        elif not charge.durable.done():
            charge.durable.set_result(None)

    def _failed(self, charge: Charge, error: Unavailable) -> None:
        charge.state = _State.FAILED
        if charge.durable is None:
            self._enqueue(Charge(charge.slot, charge.record, charge.void))
        elif not charge.durable.done():
            charge.durable.set_exception(
                Unavailable(f"the charge could not be made durable: {error.reason}", 2.0)
            )
