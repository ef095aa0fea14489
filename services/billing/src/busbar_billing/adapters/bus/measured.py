"""The WORK_MEASURED streams: what attempts cost, from messages to rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from busbar_contracts.node.v1.status_pb2 import WorkMeasuredBatch
from busbar_errors import Rejected
from busbar_messaging.dispositions import decode
from busbar_messaging.topology import NodeId, measured_subject
from nats.aio.msg import Msg

from busbar_billing.adapters import metrics
from busbar_billing.adapters.bus.consuming import Refusal
from busbar_billing.adapters.postgres.measured import MeasuredWork

_INT64_MAX = 2**63 - 1
_UUID_BYTES = 16
_ENDED_UNIX_MS_MAX = 4_102_444_800_000  # 2100-01-01
_SEQUENCE_MAX = 2**62
_TEXT_MAX = 200


class MeasuredWriter:
    """Stores batches of measured work."""

    def __init__(self, store: MeasuredWork, new_id: Callable[[], UUID]) -> None:
        self._store = store
        self._new_id = new_id

    async def handle(self, messages: Sequence[Msg]) -> list[Refusal]:
        """Store what the messages hold; raises Rejected when one cannot be what a node measured."""
        batches = [decode(WorkMeasuredBatch, message.data) for message in messages]
        for message, batch in zip(messages, batches, strict=True):
            _check_origin(message.subject, batch.node)
            _check(batch)
        await self._store.add(batches, self._new_id)
        metrics.MEASURED.inc(sum(len(batch.records) for batch in batches))
        return []


def _check_origin(subject: str, node: str) -> None:
    """A site may write where its nodes' records come from, so what they say must agree with it."""
    try:
        wanted = measured_subject(NodeId.parse(node))
    except ValueError as error:
        raise Rejected(str(error)[:_TEXT_MAX]) from error
    if subject != wanted:
        raise Rejected(f"{subject} has no records of node {node[:_TEXT_MAX]}")


def _check(batch: WorkMeasuredBatch) -> None:
    if not 0 < batch.first_sequence <= _SEQUENCE_MAX:
        raise Rejected(f"first_sequence is {batch.first_sequence}: it counts from 1")
    run = batch.agent_run_id
    if not run or len(run) > _TEXT_MAX or "\x00" in run:
        raise Rejected(f"not the name of an agent's run: {run[:40]!r}")
    for record in batch.records:
        if len(record.request_id) != _UUID_BYTES:
            raise Rejected(f"request_id has {len(record.request_id)} bytes")
        if not 0 <= record.ended_unix_ms <= _ENDED_UNIX_MS_MAX:
            raise Rejected(f"ended_unix_ms is {record.ended_unix_ms}")
        if "\x00" in record.tenant_id + record.deployment:
            raise Rejected("a name holds NUL")
        counts = (
            record.attempt << 32,  # int4 in the table
            record.input_tokens,
            record.output_tokens,
            record.queue_us,
            record.compute_us,
            record.energy_mj,
        )
        if max(counts) > _INT64_MAX:
            raise Rejected(f"a count does not fit: {max(counts)}")
