"""What the admin API asks of usage and of the journal: newest first, page by page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
from busbar_errors import NotFound

from busbar_billing.adapters.postgres.database import Connections
from busbar_billing.adapters.postgres.journal import TRANSFER_ROWS, read_transfers
from busbar_billing.adapters.postgres.metering import read_before
from busbar_billing.adapters.postgres.prices import to_unix_ns
from busbar_billing.domain.prices import Component
from busbar_billing.domain.usage import Outcome, UsageRecord
from busbar_billing.usecases.tenants import PostedTransfer

_USAGE_ROWS = """
    SELECT u.*, v.request_id IS NOT NULL AS voided, v.reason AS void_reason
    FROM usage_records AS u
    LEFT JOIN usage_voids AS v USING (request_id)
"""
_USAGE_PAGE = (
    _USAGE_ROWS
    + """
    WHERE ($1::text IS NULL OR u.tenant_id = $1)
    AND u.request_id >= $2 AND u.request_id < $3
    ORDER BY u.request_id DESC
    LIMIT $4
"""
)
_OF_PAGE = """
    WHERE t.transfer_id IN (
        SELECT transfer_id FROM transfers
        WHERE ($1::text IS NULL OR tenant_id = $1)
        AND ($2::uuid IS NULL OR request_id = $2)
        AND transfer_id < $3
        ORDER BY transfer_id DESC
        LIMIT $4
    )
    ORDER BY t.transfer_id DESC, p.line
"""
_LEDGER_PAGE = TRANSFER_ROWS + _OF_PAGE

FIRST_ID = UUID(int=0)
LAST_ID = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class PostedUsage:
    """A record, how it was rated, and whether it was taken back."""

    record: UsageRecord
    trace_id: str
    price_version: int
    rated_class: str
    before: Mapping[Component, int]
    amount_nanos: int
    currency: str
    transfer_id: UUID
    posted_at: datetime
    voided: bool
    void_reason: str | None


class Reader:
    """Reads usage and the journal."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def usage(
        self, tenant_id: str | None, first: UUID, before: UUID, limit: int
    ) -> list[PostedUsage]:
        """Records with `first` <= request id < `before`; request ids are ordered by admission."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_USAGE_PAGE, tenant_id, first, before, limit)
        return [_read_usage(row) for row in rows]

    async def usage_of(self, request_id: UUID) -> PostedUsage:
        """One record; raise NotFound when it was not posted (yet)."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_USAGE_ROWS + " WHERE u.request_id = $1", request_id)
        if row is None:
            raise NotFound(f"no usage is posted for request req_{request_id.hex}")
        return _read_usage(row)

    async def transfers(
        self, tenant_id: str | None, request_id: UUID | None, before: UUID, limit: int
    ) -> list[PostedTransfer]:
        """Transfers with an id below `before`; ids are ordered by posting."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_LEDGER_PAGE, tenant_id, request_id, before, limit)
        return read_transfers(rows)


def _read_usage(row: asyncpg.Record) -> PostedUsage:
    return PostedUsage(
        record=read_record(row),
        trace_id=row["trace_id"],
        price_version=row["price_version"],
        rated_class=row["rated_class"],
        before=read_before(row["consumed"]),
        amount_nanos=row["amount_nanos"],
        currency=row["currency"],
        transfer_id=row["transfer_id"],
        posted_at=row["posted_at"],
        voided=row["voided"],
        void_reason=row["void_reason"],
    )


def read_record(row: asyncpg.Record) -> UsageRecord:
    """What was delivered, from a row of the inbox."""
    return UsageRecord(
        request_id=row["request_id"],
        tenant_id=row["tenant_id"],
        key_id=row["key_id"],
        deployment=row["deployment"],
        price_class=row["price_class"],
        api=row["api"],
        outcome=Outcome(row["outcome"]),
        admitted_unix_ns=to_unix_ns(row["admitted_at"]),
        finished_unix_ns=to_unix_ns(row["finished_at"]),
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        request_bytes=row["request_bytes"],
        response_bytes=row["response_bytes"],
        compute_us=row["compute_us"],
        node=row["node"],
        attempt=row["attempt"],
        gateway_id=row["gateway_id"],
        traceparent="",
        cached_tokens=row["cached_tokens"],
        project_id=row["project_id"],
        lease_id=row["lease_id"],
        stream_sequence=row["stream_sequence"],
    )
