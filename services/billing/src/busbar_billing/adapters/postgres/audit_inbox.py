"""The inbox as the auditor compares it with the stream that filled it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.reading import read_record
from busbar_billing.domain.audit.answers import Delivered, Kept
from busbar_billing.usecases.audit_answers import KeptPiece

_RECORDS = "SELECT * FROM usage_records WHERE request_id = ANY($1::uuid[])"
_VOIDS = "SELECT request_id FROM usage_voids WHERE request_id = ANY($1::uuid[])"
_BROUGHT = """
    SELECT stream_sequence, request_id FROM usage_records
    WHERE stream_sequence BETWEEN $1 AND $2 AND posted_at >= $3
"""
_CURRENCIES = "SELECT tenant_id, currency FROM tenants WHERE tenant_id = ANY($1::text[])"
_WITHOUT_ORIGIN = """
    SELECT u.request_id FROM usage_records AS u
    WHERE u.stream_sequence = 0
    -- A service of the release before may have gone on for a while.
    AND u.posted_at > (SELECT min(kept_since) FROM usage_origins) + interval '10 minutes'
    LIMIT 1000
"""


class AuditedInbox:
    """Reads what was charged by what brought it."""

    def __init__(self, database: Database, prices: Prices) -> None:
        self._database = database
        self._prices = prices

    async def kept(
        self, piece: Sequence[Delivered], first: int, last: int, since: datetime
    ) -> KeptPiece:
        """What there is of a piece's requests, and of messages `first` to `last` posted `since`."""
        asked = [record.request_id for message in piece for record in message.records]
        voided = [request_id for message in piece for request_id in message.voids]
        tenants = {record.tenant_id for message in piece for record in message.records}
        async with self._database.as_auditor() as connection:
            records = await connection.fetch(_RECORDS, asked)
            voids = await connection.fetch(_VOIDS, voided) if voided else []
            brought = await connection.fetch(_BROUGHT, first, last, since)
            currencies = await _currencies(connection, tenants)
            books = await self._prices.current(connection)
        kept = Kept(
            {row["request_id"]: read_record(row) for row in records},
            {row["request_id"] for row in voids},
            [(row["stream_sequence"], row["request_id"]) for row in brought],
        )
        return KeptPiece(kept, books, currencies)

    async def without_origin(self) -> list[UUID]:
        """Requests charged without a message since it is noted which one brought them."""
        async with self._database.as_auditor() as connection:
            return [row["request_id"] for row in await connection.fetch(_WITHOUT_ORIGIN)]


async def _currencies(connection: Connection, tenant_ids: set[str]) -> dict[str, str]:
    # A NUL cannot be in a text column, nor be asked for.
    asked = [tenant_id for tenant_id in tenant_ids if "\x00" not in tenant_id]
    return {row["tenant_id"]: row["currency"] for row in await connection.fetch(_CURRENCIES, asked)}
