"""Usage by minute, hour and day, as rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from busbar_billing.adapters.postgres.database import Connections
from busbar_billing.domain.rollups import GroupBy, Window

_COLUMNS = {
    GroupBy.NOTHING: "''",
    GroupBy.KEY: "key_id",
    GroupBy.MODEL: "deployment",
    GroupBy.PROJECT: "project_id",
}
_PAGE = """
    SELECT
        bucket_at, {group} AS name,
        sum(requests)::bigint AS requests, sum(voided_requests)::bigint AS voided_requests,
        sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens,
        sum(output_tokens) AS output_tokens,
        sum(request_bytes) AS request_bytes, sum(response_bytes) AS response_bytes,
        sum(compute_us) AS compute_us, sum(amount_nanos) AS amount_nanos
    FROM usage_rollups
    WHERE tenant_id = $1 AND bucket_s = $2 AND bucket_at >= $3 AND bucket_at < $4
    AND ($5::text IS NULL OR bucket_at > $3 OR {group} > $5)
    AND ($6::text IS NULL OR key_id = $6)
    AND ($7::text IS NULL OR project_id = $7)
    AND ($8::text IS NULL OR deployment = $8)
    GROUP BY 1, 2
    ORDER BY 1, 2
    LIMIT $9
"""


@dataclass(frozen=True, slots=True)
class UsageBucket:
    """What was used in one bucket by one group; records taken back are not in the sums."""

    bucket_at: datetime
    name: str
    requests: int
    voided_requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    request_bytes: int
    response_bytes: int
    compute_us: int
    amount_nanos: int


@dataclass(frozen=True, slots=True)
class Filters:
    """Only this key, project or deployment; None: all of them. The default project is ""."""

    key_id: str | None = None
    project_id: str | None = None
    deployment: str | None = None


@dataclass(frozen=True, slots=True)
class After:
    """The last bucket and group that were read."""

    bucket_at: datetime
    name: str


class Rollups:
    """Reads what the triggers of usage_records and transfers keep."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def page(
        self,
        tenant_id: str,
        window: Window,
        group_by: GroupBy,
        filters: Filters,
        *,
        limit: int,
        after: After | None = None,
    ) -> list[UsageBucket]:
        """Buckets with usage in them, oldest first, from the first one behind `after`."""
        arguments = page_arguments(tenant_id, window, filters, limit, after)
        async with self._database.connection() as connection:
            rows = await connection.fetch(page_query(group_by), *arguments)
        return [_read_bucket(row) for row in rows]


def page_query(group_by: GroupBy) -> str:
    """The statement behind a page."""
    return _PAGE.format(group=_COLUMNS[group_by])


def page_arguments(
    tenant_id: str, window: Window, filters: Filters, limit: int, after: After | None
) -> list[object]:
    """Its arguments."""
    # What comes from another window's cursor is ignored where it is not in this one.
    inside = after if after is not None and after.bucket_at >= window.since else None
    return [
        tenant_id,
        int(window.bucket.length.total_seconds()),
        window.since if inside is None else inside.bucket_at,
        window.until,
        None if inside is None else inside.name,
        filters.key_id,
        filters.project_id,
        filters.deployment,
        limit,
    ]


def _read_bucket(row: asyncpg.Record) -> UsageBucket:
    return UsageBucket(
        bucket_at=row["bucket_at"],
        name=row["name"],
        requests=row["requests"],
        voided_requests=row["voided_requests"],
        input_tokens=int(row["input_tokens"]),
        cached_tokens=int(row["cached_tokens"]),
        output_tokens=int(row["output_tokens"]),
        request_bytes=int(row["request_bytes"]),
        response_bytes=int(row["response_bytes"]),
        compute_us=int(row["compute_us"]),
        amount_nanos=int(row["amount_nanos"]),
    )
