"""Promotional credits and what was spent of them, as rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.journal import TRANSFER_ROWS, read_transfers
from busbar_billing.domain.ledger import Transfer
from busbar_billing.domain.promotions import Credit, Spending

_LOCK = "SELECT * FROM lock_promotional_credits($1::text[])"
_SPENT = """
    SELECT s.request_id, s.credit_id, sum(s.amount_nanos)::bigint AS amount_nanos
    FROM promotional_spending AS s
    INNER JOIN promotional_credits AS c USING (credit_id)
    WHERE s.request_id = ANY($1::uuid[])
    GROUP BY s.request_id, s.credit_id, c.expires_at
    HAVING sum(s.amount_nanos) > 0
    ORDER BY s.request_id, c.expires_at, s.credit_id
"""
_ADD_SPENDING = """
    INSERT INTO promotional_spending (transfer_id, credit_id, request_id, amount_nanos)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::int8[])
"""
_REFUNDS = (
    TRANSFER_ROWS
    + """
    WHERE t.request_id = ANY($1::uuid[]) AND t.kind = 'refund'
    AND NOT EXISTS (
        SELECT FROM transfers AS undone
        WHERE undone.idempotency_key = 'correction:' || t.transfer_id
    )
    ORDER BY t.transfer_id, p.line
"""
)
_OF_TENANT = """
    SELECT c.*, u.unspent_nanos, t.reason, t.posted_at
    FROM promotional_credits AS c
    INNER JOIN promotional_unspent AS u USING (credit_id)
    INNER JOIN transfers AS t ON t.transfer_id = c.credit_id
    WHERE c.tenant_id = $1 AND c.credit_id < $2
    ORDER BY c.credit_id DESC
    LIMIT $3
"""


@dataclass(frozen=True, slots=True)
class GivenCredit:
    """A credit as it stands."""

    credit_id: UUID
    tenant_id: str
    currency: str
    amount_nanos: int
    unspent_nanos: int
    reference: str
    given_at: datetime
    expires_at: datetime


async def lock_credits(connection: Connection, tenant_ids: Collection[str]) -> list[Credit]:
    """Credits with something left, first to expire first, locked until the transaction ends."""
    if not tenant_ids:
        return []
    rows = await connection.fetch(_LOCK, list(tenant_ids))
    return [Credit(row["credit_id"], row["tenant_id"], row["unspent_nanos"]) for row in rows]


async def credit_spent(
    connection: Connection, request_ids: Collection[UUID]
) -> dict[UUID, list[tuple[UUID, int]]]:
    """What the charges of these requests still have from credits, in the order of spending."""
    spent: dict[UUID, list[tuple[UUID, int]]] = {}
    for row in await connection.fetch(_SPENT, list(request_ids)):
        spent.setdefault(row["request_id"], []).append((row["credit_id"], row["amount_nanos"]))
    return spent


async def add_spending(connection: Connection, spending: Sequence[Spending]) -> None:
    """What was spent of credits, or came back."""
    if spending:
        await connection.execute(
            _ADD_SPENDING,
            [one.transfer_id for one in spending],
            [one.credit_id for one in spending],
            [one.request_id for one in spending],
            [one.amount_nanos for one in spending],
        )


async def refunds_of(connection: Connection, request_ids: Collection[UUID]) -> list[Transfer]:
    """Refunds of these requests that nobody corrected."""
    rows = await connection.fetch(_REFUNDS, list(request_ids))
    return [one.transfer for one in read_transfers(rows)]


class Credits:
    """What tenants were given."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_tenant(self, tenant_id: str, before: UUID, limit: int) -> list[GivenCredit]:
        """A tenant's credits with an id below `before`, newest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_OF_TENANT, tenant_id, before, limit)
        return [
            GivenCredit(
                credit_id=row["credit_id"],
                tenant_id=row["tenant_id"],
                currency=row["currency"],
                amount_nanos=row["amount_nanos"],
                unspent_nanos=row["unspent_nanos"],
                reference=row["reason"],
                given_at=row["posted_at"],
                expires_at=row["expires_at"],
            )
            for row in rows
        ]
