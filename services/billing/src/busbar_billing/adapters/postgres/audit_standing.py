"""Balances, leases, credits and statements as the auditor reads them, each at one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import asyncpg

from busbar_billing.adapters.postgres.database import AUDIT_TIMEOUT_MS, Database
from busbar_billing.adapters.postgres.payments import read_payment
from busbar_billing.domain.audit.payments import PaymentRow
from busbar_billing.domain.audit.standing import (
    AccountRow,
    ClosedLease,
    CreditRow,
    GivenOut,
    HoldRow,
    NumberedRow,
    SpendingRow,
    Summed,
)

_TIMEOUT_S = AUDIT_TIMEOUT_MS / 1000 + 5
_AT_ONCE = 1_000

_ACCOUNTS = """
    SELECT
        a.account_id, a.kind, coalesce(a.tenant_id, a.site, '') AS owner, a.currency,
        coalesce(b.balance_nanos, 0) AS balance_nanos,
        coalesce(since.nanos, 0) AS since_nanos
    FROM accounts AS a
    LEFT JOIN account_balances AS b ON b.account_id = a.account_id
    LEFT JOIN (
        SELECT account_id, sum(amount_nanos) AS nanos FROM postings
        WHERE transfer_id > $1 GROUP BY account_id
    ) AS since ON since.account_id = a.account_id
"""
_SUMMED = """
    SELECT
        a.account_id, a.kind, coalesce(a.tenant_id, a.site, '') AS owner, a.currency,
        coalesce(b.balance_nanos, 0) AS balance_nanos, 0 AS since_nanos,
        coalesce((
            SELECT sum(p.amount_nanos) FROM postings AS p WHERE p.account_id = a.account_id
        ), 0) AS sum_nanos
    FROM accounts AS a
    LEFT JOIN account_balances AS b ON b.account_id = a.account_id
    WHERE a.account_id = ANY($1::int8[])
"""
_HOLDS = """
    SELECT
        coalesce(a.tenant_id, l.tenant_id) AS tenant_id,
        coalesce(a.currency, l.currency) AS currency,
        coalesce(a.held_nanos, 0) AS held_nanos, coalesce(l.left_nanos, 0) AS left_nanos
    FROM (
        SELECT a.tenant_id, a.currency, b.balance_nanos AS held_nanos
        FROM accounts AS a INNER JOIN account_balances AS b ON b.account_id = a.account_id
        WHERE a.kind = 'tenant_held'
    ) AS a
    FULL JOIN (
        SELECT tenant_id, currency, sum(granted_nanos - returned_nanos - posted_nanos) AS left_nanos
        FROM leases WHERE closed_at IS NULL GROUP BY tenant_id, currency
    ) AS l ON l.tenant_id = a.tenant_id AND l.currency = a.currency
"""
_CLOSED = """
    SELECT lease_id, granted_nanos - returned_nanos - posted_nanos AS left_nanos
    FROM leases WHERE closed_at IS NOT NULL
    AND granted_nanos - returned_nanos - posted_nanos <> 0 LIMIT $1
"""
_CREDITS = """
    SELECT
        c.credit_id, c.amount_nanos, u.unspent_nanos, u.expires_at AS ends_at,
        least(c.expires_at, w.withdrawn_at) AS ends_as_given_at,
        coalesce((
            SELECT sum(s.amount_nanos) FROM promotional_spending AS s
            WHERE s.credit_id = c.credit_id
        ), 0) AS spent_nanos,
        (
            SELECT sum(p.amount_nanos)
            FROM transfers AS t
            INNER JOIN postings AS p ON p.transfer_id = t.transfer_id
            INNER JOIN accounts AS a ON a.account_id = p.account_id
            WHERE t.transfer_id = c.credit_id AND t.kind = 'promotional_credit'
            AND a.kind = 'tenant_available' AND a.tenant_id = c.tenant_id
        ) AS given_nanos
    FROM promotional_credits AS c
    LEFT JOIN promotional_unspent AS u ON u.credit_id = c.credit_id
    LEFT JOIN promotional_withdrawals AS w ON w.credit_id = c.credit_id
    WHERE c.credit_id > $1 ORDER BY c.credit_id LIMIT $2
"""
_SPENDING = """
    SELECT
        s.transfer_id, t.kind, s.spent_nanos,
        coalesce((
            SELECT -sum(p.amount_nanos)
            FROM postings AS p INNER JOIN accounts AS a ON a.account_id = p.account_id
            WHERE p.transfer_id = s.transfer_id AND starts_with(a.kind, 'tenant_')
        ), 0) AS moved_nanos
    FROM (
        SELECT transfer_id, sum(amount_nanos) AS spent_nanos
        FROM promotional_spending WHERE transfer_id > $1
        GROUP BY transfer_id ORDER BY transfer_id LIMIT $2
    ) AS s
    LEFT JOIN transfers AS t ON t.transfer_id = s.transfer_id
    ORDER BY s.transfer_id
"""
_PAYMENTS = """
    SELECT
        m.*,
        (
            SELECT sum(p.amount_nanos)
            FROM transfers AS t
            INNER JOIN postings AS p ON p.transfer_id = t.transfer_id
            INNER JOIN accounts AS a ON a.account_id = p.account_id
            WHERE t.idempotency_key = 'top_up:' || m.tenant_id || ':' || m.reference
            AND a.kind = 'tenant_available'
        ) AS topped_up_nanos,
        EXISTS (
            SELECT FROM transfers AS t WHERE t.idempotency_key
            = 'payment_returned:' || m.reference || ':' || m.posted_returned_nanos
        ) AS returned
    FROM (SELECT * FROM payments WHERE reference > $1 ORDER BY reference LIMIT $2) AS m
    ORDER BY m.reference
"""
_NUMBERED = """
    SELECT
        s.number, s.entity_id, s.sequence, s.kind, s.closing_nanos,
        coalesce(
            lag(s.sequence) OVER (PARTITION BY s.entity_id ORDER BY s.sequence), 0
        ) AS previous,
        e.number_prefix || '-'
        || lpad(s.sequence::text, greatest(6, length(s.sequence::text)), '0') AS wanted_number,
        (
            SELECT sum(p.amount_nanos)
            FROM postings AS p INNER JOIN accounts AS a ON a.account_id = p.account_id
            WHERE p.transfer_id = s.transfer_id AND a.tenant_id = s.tenant_id
        ) AS moved_nanos
    FROM statements AS s INNER JOIN legal_entities AS e ON e.entity_id = s.entity_id
"""
_GIVEN_OUT = """
    SELECT
        e.entity_id, e.last_sequence,
        coalesce((
            SELECT max(s.sequence) FROM statements AS s WHERE s.entity_id = e.entity_id
        ), 0) AS last_kept
    FROM legal_entities AS e
"""


class AuditedStanding:
    """Reads what is kept beside the journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accounts(self, since: UUID) -> AsyncIterator[Sequence[AccountRow]]:
        """All accounts and what was posted to them after the transfer `since`, at one moment."""
        async for rows in self._all(_ACCOUNTS, since):
            yield [_account(row) for row in rows]

    async def summed(self, account_ids: Sequence[int]) -> list[Summed]:
        """These accounts with the sum of all their postings, at one moment."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(_SUMMED, account_ids, timeout=_TIMEOUT_S)
        return [Summed(_account(row), int(row["sum_nanos"])) for row in rows]

    async def holds(self) -> AsyncIterator[Sequence[HoldRow]]:
        """Every tenant that holds money in leases, at one moment."""
        async for rows in self._all(_HOLDS):
            yield [
                HoldRow(
                    row["tenant_id"],
                    row["currency"],
                    int(row["held_nanos"]),
                    int(row["left_nanos"]),
                )
                for row in rows
            ]

    async def closed_leases(self) -> list[ClosedLease]:
        """Closed ones of which something is left."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(_CLOSED, _AT_ONCE, timeout=_TIMEOUT_S)
        return [ClosedLease(row["lease_id"], row["left_nanos"]) for row in rows]

    async def credits(self, after: UUID, limit: int) -> list[CreditRow]:
        """The next credits."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(_CREDITS, after, limit, timeout=_TIMEOUT_S)
        return [
            CreditRow(
                credit_id=row["credit_id"],
                amount_nanos=row["amount_nanos"],
                spent_nanos=int(row["spent_nanos"]),
                unspent_nanos=row["unspent_nanos"],
                given_nanos=None if row["given_nanos"] is None else int(row["given_nanos"]),
                ends_at=row["ends_at"],
                ends_as_given_at=row["ends_as_given_at"],
            )
            for row in rows
        ]

    async def spending(self, after: UUID, limit: int) -> list[SpendingRow]:
        """The next transfers that spent credit or gave it back."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(_SPENDING, after, limit, timeout=_TIMEOUT_S)
        return [
            SpendingRow(
                row["transfer_id"], row["kind"], int(row["spent_nanos"]), int(row["moved_nanos"])
            )
            for row in rows
        ]

    async def payments(self, after: str, limit: int) -> list[PaymentRow]:
        """The next payments, and what the journal has of each."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(_PAYMENTS, after, limit, timeout=_TIMEOUT_S)
        return [
            PaymentRow(
                read_payment(row),
                None if row["topped_up_nanos"] is None else int(row["topped_up_nanos"]),
                row["returned"],
            )
            for row in rows
        ]

    async def numbered(self) -> AsyncIterator[Sequence[NumberedRow]]:
        """Every statement and credit note."""
        async for rows in self._all(_NUMBERED):
            yield [_numbered(row) for row in rows]

    async def given_out(self) -> list[GivenOut]:
        """The last number of each legal entity."""
        async with self._database.as_auditor() as connection:
            rows = await connection.fetch(_GIVEN_OUT, timeout=_TIMEOUT_S)
        return [GivenOut(*row) for row in rows]

    async def _all(self, query: str, *arguments: object) -> AsyncIterator[list[asyncpg.Record]]:
        """All rows of a query, a bounded number at a time, as of one moment."""
        async with self._database.as_auditor() as connection:
            cursor = await connection.cursor(query, *arguments, timeout=_TIMEOUT_S)
            while rows := await cursor.fetch(_AT_ONCE, timeout=_TIMEOUT_S):
                yield rows


def _account(row: asyncpg.Record) -> AccountRow:
    return AccountRow(
        account_id=row["account_id"],
        kind=row["kind"],
        owner=row["owner"],
        currency=row["currency"],
        balance_nanos=int(row["balance_nanos"]),
        posted_since_nanos=int(row["since_nanos"]),
    )


def _numbered(row: asyncpg.Record) -> NumberedRow:
    note = row["kind"] == "credit_note"
    moved = row["moved_nanos"]
    return NumberedRow(
        number=row["number"],
        entity_id=row["entity_id"],
        sequence=row["sequence"],
        previous=row["previous"],
        wanted_number=row["wanted_number"],
        given_nanos=int(row["closing_nanos"]) if note else None,
        moved_nanos=None if moved is None else int(moved),
    )
