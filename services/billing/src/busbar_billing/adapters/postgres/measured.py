"""Measured work, as rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from uuid import UUID

import asyncpg
from busbar_contracts.node.v1.status_pb2 import WorkMeasured, WorkMeasuredBatch

from busbar_billing.adapters.postgres.database import Database
from busbar_billing.adapters.postgres.energy import energy_prices
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.prices import from_unix_ns, to_unix_ns
from busbar_billing.domain.energy import (
    EnergyPrice,
    Spent,
    cost_by_currency,
    energy_cost,
    site_of,
)
from busbar_billing.domain.ledger import Transfer

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
    RETURNING node, agent_run_id, sequence, energy_mj, ended_at
"""


class MeasuredWork:
    """Where measured work is kept; a repeat of a (node, run, sequence) is ignored."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal

    async def add(self, batches: Sequence[WorkMeasuredBatch], new_id: Callable[[], UUID]) -> None:
        """Store every record of the batches, and book what their energy cost."""
        rows = [
            _row(batch, batch.first_sequence + offset, record)
            for batch in batches
            for offset, record in enumerate(batch.records)
        ]
        if not rows:
            return
        columns = [list(column) for column in zip(*rows, strict=True)]
        async with self._database.transaction() as connection:
            fresh = [
                row
                for row in await connection.fetch(_ADD, *columns)
                if row["energy_mj"] is not None
            ]
            if not fresh:
                return
            prices = await energy_prices(connection, {site_of(row["node"]) for row in fresh})
            if prices:
                await self._journal.append(connection, _costs(fresh, prices, new_id))


def _costs(
    fresh: Sequence[asyncpg.Record],
    prices: Sequence[EnergyPrice],
    new_id: Callable[[], UUID],
) -> list[Transfer]:
    """A transfer for each node and run, whose first new record makes it unique."""
    runs: defaultdict[tuple[str, str], list[asyncpg.Record]] = defaultdict(list)
    for row in fresh:
        runs[row["node"], row["agent_run_id"]].append(row)
    booked: list[Transfer] = []
    for (node, run), rows in sorted(runs.items()):
        spent = [Spent(row["energy_mj"], to_unix_ns(row["ended_at"])) for row in rows]
        here = [one for one in prices if one.site == site_of(node)]
        first = min(row["sequence"] for row in rows)
        transfer = energy_cost(new_id(), node, run, first, cost_by_currency(spent, here))
        if transfer is not None:
            booked.append(transfer)
    return booked


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
