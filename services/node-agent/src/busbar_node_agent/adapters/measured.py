"""Cost records into the site's stream: batched, numbered, stored or visibly missing."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from busbar_contracts.node.v1 import status_pb2
from busbar_errors import Unavailable
from busbar_messaging.connection import publish_durably
from busbar_messaging.topology import NodeId, measured_subject
from nats.js.client import JetStreamContext
from prometheus_client import Counter

from busbar_node_agent.domain.measured import MeasuredBuffer

log = structlog.get_logger()

BATCH_INTERVAL_S = 0.1
BATCH_RECORDS_MAX = 256
BUFFER_RECORDS_MAX = 100_000
GIVE_UP_AFTER = timedelta(seconds=15)

_DROPPED = Counter(
    "busbar_agent_measured_dropped", "Cost records dropped because the buffer was full"
)


class MeasuredPublisher:
    """Takes WorkMeasured records at any time and stores them in the background."""

    def __init__(self, jetstream: JetStreamContext, node: NodeId, run_id: str) -> None:
        self._jetstream = jetstream
        self._node = node
        self._run_id = run_id
        self._buffer: MeasuredBuffer[status_pb2.WorkMeasured] = MeasuredBuffer(
            BUFFER_RECORDS_MAX, BATCH_RECORDS_MAX
        )
        self._some = asyncio.Event()
        self._storing = asyncio.Lock()

    def add(self, record: status_pb2.WorkMeasured) -> None:
        """Keep a record for the next batch."""
        if not self._buffer.add(record):
            _DROPPED.inc()
            if self._buffer.dropped_count == 1:
                log.error("cost records dropped", buffered=len(self._buffer))
        self._some.set()

    async def publish_for_ever(self) -> None:
        """Store batch after batch."""
        while True:
            await self._some.wait()
            self._some.clear()
            await asyncio.sleep(BATCH_INTERVAL_S)
            while len(self._buffer):
                await self._store_next()

    async def flush(self, timeout_s: float) -> None:
        """Store what is left, as far as the time allows."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self._buffer):
                    await self._store_next()
        except TimeoutError:
            log.warning("cost records not stored", count=len(self._buffer))

    async def _store_next(self) -> None:
        async with self._storing:
            first, records = self._buffer.batch()
            if not records:
                return
            batch = status_pb2.WorkMeasuredBatch(
                node=self._node.key,
                agent_run_id=self._run_id,
                first_sequence=first,
                records=records,
            )
            try:
                await publish_durably(
                    self._jetstream,
                    measured_subject(self._node),
                    batch.SerializeToString(),
                    message_id=f"{self._run_id}-{first}",
                    give_up_after=GIVE_UP_AFTER,
                )
            except Unavailable as error:
                log.warning("cost records waiting", count=len(self._buffer), reason=error.reason)
                await asyncio.sleep(1.0)
                return
            self._buffer.stored(first, len(records))
