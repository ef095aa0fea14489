"""Work that was measured and brought nothing in: the cost side of what was not charged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from busbar_billing.adapters.postgres.database import Database

Reason = Literal["not_charged", "voided", "other_attempt_charged"]
"""Failed or interrupted by us; charged and taken back; done again elsewhere and charged there."""

_PAGE = """
    SELECT
        w.request_id, w.attempt, w.node, w.agent_run_id, w.sequence, w.tenant_id, w.deployment,
        w.finished, w.input_tokens, w.output_tokens, w.compute_us, w.energy_mj, w.ended_at,
        CASE
            WHEN u.request_id IS NULL THEN 'not_charged'
            WHEN v.request_id IS NOT NULL THEN 'voided'
            ELSE 'other_attempt_charged'
        END AS reason
    FROM work_measured AS w
    LEFT JOIN usage_records AS u ON u.request_id = w.request_id
    LEFT JOIN usage_voids AS v ON v.request_id = w.request_id
    WHERE w.request_id >= $1 AND w.request_id < $2
    AND ($3::text IS NULL OR w.tenant_id = $3)
    AND (u.request_id IS NULL OR v.request_id IS NOT NULL OR u.attempt <> w.attempt)
    AND (w.request_id, w.node, w.agent_run_id, w.sequence) < ($4, $5, $6, $7)
    ORDER BY w.request_id DESC, w.node DESC, w.agent_run_id DESC, w.sequence DESC
    LIMIT $8
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ends: rows are listed downwards."""

    request_id: UUID
    node: str = ""
    agent_run_id: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Leak:
    """One attempt that brought nothing in, and what it cost."""

    place: Place
    attempt: int
    tenant_id: str
    deployment: str
    finished: bool
    input_tokens: int
    output_tokens: int
    compute_us: int
    energy_mj: int | None
    ended_at: datetime
    reason: Reason


class Leakage:
    """Reads measured work beside charges."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, tenant_id: str | None, first: UUID, last: UUID, before: Place, limit: int
    ) -> list[Leak]:
        """Attempts of requests with `first` <= id < `last`, newest first, from below `before`."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _PAGE,
                first,
                last,
                tenant_id,
                before.request_id,
                before.node,
                before.agent_run_id,
                before.sequence,
                limit,
            )
        return [
            Leak(
                place=Place(row["request_id"], row["node"], row["agent_run_id"], row["sequence"]),
                attempt=row["attempt"],
                tenant_id=row["tenant_id"],
                deployment=row["deployment"],
                finished=row["finished"],
                input_tokens=row["input_tokens"],
                output_tokens=row["output_tokens"],
                compute_us=row["compute_us"],
                energy_mj=row["energy_mj"],
                ended_at=row["ended_at"],
                reason=row["reason"],
            )
            for row in rows
        ]
