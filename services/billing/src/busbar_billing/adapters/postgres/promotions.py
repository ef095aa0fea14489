"""Promotional credits and what was spent of them, as rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from busbar_errors import NotFound

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
_RETURNED = """
    SELECT request_id, -sum(amount_nanos)::bigint AS amount_nanos FROM promotional_spending
    WHERE request_id = ANY($1::uuid[]) AND amount_nanos < 0
    GROUP BY request_id
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
_GIVEN = """
    SELECT
        c.*, u.unspent_nanos, t.reason AS reference, t.posted_at AS given_at,
        (
            SELECT coalesce(sum(s.amount_nanos), 0)::bigint FROM promotional_spending AS s
            WHERE s.credit_id = c.credit_id AND s.request_id IS NULL
        ) AS taken_back_nanos,
        w.withdrawn_at, coalesce(w.reason, '') AS withdrawn_for
    FROM promotional_credits AS c
    INNER JOIN promotional_unspent AS u USING (credit_id)
    INNER JOIN transfers AS t ON t.transfer_id = c.credit_id
    LEFT JOIN promotional_withdrawals AS w USING (credit_id)
"""
_OF_TENANT = f"""
    {_GIVEN}
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
    taken_back_nanos: int
    """When it expired or was withdrawn."""
    withdrawn_at: datetime | None
    withdrawn_for: str


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


async def credit_returned(connection: Connection, request_ids: Collection[UUID]) -> dict[UUID, int]:
    """What came back already of the credit that the charges of these requests spent."""
    rows = await connection.fetch(_RETURNED, list(request_ids))
    return {row["request_id"]: row["amount_nanos"] for row in rows}


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
        return [GivenCredit(**row) for row in rows]

    async def get(self, credit_id: UUID) -> GivenCredit:
        """A credit; raise NotFound when there is none."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_GIVEN + "WHERE c.credit_id = $1", credit_id)
        if row is None:
            raise NotFound(f"there is no promotional credit {credit_id}")
        return GivenCredit(**row)
