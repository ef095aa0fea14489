"""Cost records into the site's stream: batched, numbered, stored or visibly missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import structlog
from busbar_contracts.node.v1 import status_pb2
from busbar_errors import Unavailable
from busbar_messaging.connection import publish_durably
from busbar_messaging.topology import NodeId, measured_subject
from google.protobuf.message import DecodeError
from nats.js.client import JetStreamContext
from prometheus_client import Counter

from busbar_node_agent.adapters.journal import Journal
from busbar_node_agent.domain.measured import MeasuredBuffer, runs_of

log = structlog.get_logger()

BATCH_INTERVAL_S = 0.1
BATCH_RECORDS_MAX = 256
BUFFER_RECORDS_MAX = 100_000
GIVE_UP_AFTER = timedelta(seconds=15)
_ROOM_INTERVAL_S = 5.0

_DROPPED = Counter(
    "busbar_agent_measured_dropped", "Cost records dropped because the buffer was full"
)
_IN_MEMORY = Counter(
    "busbar_agent_measured_in_memory", "Cost records that the journal had no room for"
)


class MeasuredPublisher:
    """Takes WorkMeasured records at any time and stores them in the background.

    What `add` has taken outlives the agent: the next run stores it under the name of this one.
    What the journal has no room for does not; it is counted.
    """

    def __init__(
        self, jetstream: JetStreamContext, node: NodeId, run_id: str, journal: Journal
    ) -> None:
        self._jetstream = jetstream
        self._node = node
        self._run_id = run_id
        self._journal = journal
        self._buffer: MeasuredBuffer[status_pb2.WorkMeasured] = MeasuredBuffer(
            BUFFER_RECORDS_MAX, BATCH_RECORDS_MAX
        )
        self._some = asyncio.Event()
        self._storing = asyncio.Lock()
        self._reason = ""
        self._kept = True
        self._ended = False

    def refusal(self) -> str:
        """Why no new work may be taken, since what it costs could be lost; empty when it may."""
        if self._ended:
            return "the agent ends, and keeps no more cost records"
        if not self._journal.closed:
            return ""
        waiting = f"{len(self._buffer)} cost records wait to be stored at the site"
        return self._journal.trouble or (f"{waiting}: {self._reason}" if self._reason else waiting)

    def add(self, record: status_pb2.WorkMeasured) -> None:
        """Keep a record, on disk too while there is room, for the next batch."""
        kept = self._journal.write(self._buffer.next_sequence, record.SerializeToString())
        if not kept:
            _IN_MEMORY.inc()
            if self._kept:
                log.warning("cost records in memory only", reason=self.refusal())
        self._kept = kept
        if not self._buffer.add(record):
            _DROPPED.inc()
            if self._buffer.dropped_count == 1:
                log.error("cost records dropped", buffered=len(self._buffer))
        self._some.set()

    async def keep_room(self) -> None:
        """See to it that the journal has its room, for ever."""
        while True:
            await asyncio.to_thread(self._journal.open)
            if self._journal.trouble:
                self._journal.try_again()
            if self._journal.trouble:
                log.warning("no room for cost records", reason=self._journal.trouble)
            await asyncio.sleep(_ROOM_INTERVAL_S)

    async def publish_for_ever(self) -> None:
        """Store batch after batch, and beside them what earlier runs left behind."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store_left_behind())
            tasks.create_task(self._store_own())

    async def _store_own(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            await asyncio.sleep(BATCH_INTERVAL_S)
            while len(self._buffer):
                await self._store_next()

    async def flush(self, timeout_s: float) -> None:
        """Store what is left, as far as the time allows; the rest is for the next run."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self._buffer):
                    await self._store_next()
        except TimeoutError:
            log.warning("cost records not stored yet", count=len(self._buffer))
        self._ended = True
        self._journal.close(empty=not len(self._buffer))

    async def _store_left_behind(self) -> None:
        left = await asyncio.to_thread(self._journal.left_behind)
        for run_id, records in left.items():
            log.info("cost records of an earlier run", agent_run_id=run_id, count=len(records))
            for first, batch in _batches(run_id, records):
                while not await self._store(run_id, first, batch):
                    pass
            await asyncio.to_thread(self._journal.settled, run_id)

    async def _store_next(self) -> None:
        async with self._storing:
            first, records = self._buffer.batch()
            if records and await self._store(self._run_id, first, records):
                self._buffer.stored(first, len(records))
                self._journal.stored(first + len(records))

    async def _store(self, run_id: str, first: int, records: list[status_pb2.WorkMeasured]) -> bool:
        """Publish a batch; False, after a while, when the site did not take it."""
        batch = status_pb2.WorkMeasuredBatch(
            node=self._node.key,
            agent_run_id=run_id,
            first_sequence=first,
            records=records,
        )
        try:
            await publish_durably(
                self._jetstream,
                measured_subject(self._node),
                batch.SerializeToString(),
                message_id=f"{run_id}-{first}-{len(records)}",
                give_up_after=GIVE_UP_AFTER,
            )
        except Unavailable as error:
            self._reason = error.reason
            log.warning("cost records waiting", count=len(self._buffer), reason=error.reason)
            await asyncio.sleep(1.0)
            return False
        self._reason = ""
        return True


def _batches(
    run_id: str, records: list[tuple[int, bytes]]
) -> Iterator[tuple[int, list[status_pb2.WorkMeasured]]]:
    """What an earlier run left, by the first number; what is no record counts as lost."""
    readable: list[tuple[int, status_pb2.WorkMeasured]] = []
    for number, content in records:
        try:
            readable.append((number, status_pb2.WorkMeasured.FromString(content)))
        except DecodeError:
            log.warning("cost record cannot be read", agent_run_id=run_id, number=number)
    for batch in runs_of(readable, BATCH_RECORDS_MAX):
        yield batch[0][0], [record for _, record in batch]
