"""Measured work, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from busbar_contracts.node.v1.status_pb2 import WorkMeasured, WorkMeasuredBatch

from busbar_billing.adapters.postgres.database import Database
from busbar_billing.adapters.postgres.prices import from_unix_ns

_NS_PER_MS = 1_000_000

_ADD = """
    INSERT INTO work_measured (
        node, agent_run_id, sequence, request_id, attempt, tenant_id, deployment, finished,
        input_tokens, output_tokens, queue_us, compute_us, energy_mj, ended_at
    )
    SELECT * FROM unnest(
        $1::text[], $2::text[], $3::int8[], $4::uuid[], $5::int4[], $6::text[], $7::text[],
        $8::bool[], $9::int8[], $10::int8[], $11::int8[], $12::int8[], $13::int8[],
        $14::timestamptz[]
    )
    ON CONFLICT DO NOTHING
"""


class MeasuredWork:
    """Where measured work is kept; a repeat of a (node, run, sequence) is ignored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, batches: Sequence[WorkMeasuredBatch]) -> None:
        """Store every record of the batches."""
        rows = [
            _row(batch, batch.first_sequence + offset, record)
            for batch in batches
            for offset, record in enumerate(batch.records)
        ]
        if rows:
            columns = [list(column) for column in zip(*rows, strict=True)]
            async with self._database.connection() as connection:
                await connection.execute(_ADD, *columns)


def _row(batch: WorkMeasuredBatch, sequence: int, record: WorkMeasured) -> tuple[object, ...]:
    return (
        batch.node,
        batch.agent_run_id,
        sequence,
        UUID(bytes=record.request_id),
        record.attempt,
        record.tenant_id,
        record.deployment,
        record.finished,
        record.input_tokens,
        record.output_tokens,
        record.queue_us,
        record.compute_us,
        record.energy_mj if record.energy_measured else None,
        from_unix_ns(record.ended_unix_ms * _NS_PER_MS),
    )
