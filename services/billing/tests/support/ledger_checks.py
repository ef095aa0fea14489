"""What must hold of the ledger after anything whatever happened, asked in SQL of the rows alone."""

from __future__ import annotations

import asyncpg

RULES = {
    "postings that do not sum to zero": """
        SELECT transfer_id::text FROM postings GROUP BY transfer_id, currency
        HAVING sum(amount_nanos) <> 0
    """,
    "balances that are not their postings": """
        SELECT a.account_id::text
        FROM accounts AS a
        LEFT JOIN account_balances AS b USING (account_id)
        LEFT JOIN (
            SELECT account_id, sum(amount_nanos) AS nanos FROM postings GROUP BY account_id
        ) AS p USING (account_id)
        WHERE coalesce(b.balance_nanos, 0) <> coalesce(p.nanos, 0)
    """,
    "records that are not charged exactly once": """
        SELECT u.request_id::text
        FROM usage_records AS u
        LEFT JOIN transfers AS t ON t.request_id = u.request_id AND t.kind = 'charge'
        GROUP BY u.request_id HAVING count(t.transfer_id) <> 1
    """,
    "charges without a record": """
        SELECT t.transfer_id::text
        FROM transfers AS t
        LEFT JOIN usage_records AS u ON u.request_id = t.request_id
        WHERE t.kind = 'charge' AND u.request_id IS NULL
    """,
    "charges that are not what their record costs": """
        SELECT u.request_id::text
        FROM usage_records AS u
        INNER JOIN transfers AS t ON t.transfer_id = u.transfer_id
        INNER JOIN postings AS p ON p.transfer_id = t.transfer_id
        INNER JOIN accounts AS a ON a.account_id = p.account_id AND starts_with(a.kind, 'tenant_')
        GROUP BY u.request_id, u.amount_nanos HAVING sum(p.amount_nanos) <> -u.amount_nanos
    """,
    "records with a void and no reversal": """
        SELECT u.request_id::text
        FROM usage_records AS u
        INNER JOIN usage_voids AS v ON v.request_id = u.request_id
        LEFT JOIN transfers AS t ON t.request_id = u.request_id AND t.kind = 'void'
        GROUP BY u.request_id HAVING count(t.transfer_id) <> 1
    """,
    "tenants whose holds are not their leases": """
        SELECT a.tenant_id
        FROM accounts AS a
        INNER JOIN account_balances AS b USING (account_id)
        LEFT JOIN (
            SELECT tenant_id, sum(granted_nanos - returned_nanos - posted_nanos) AS nanos
            FROM leases WHERE closed_at IS NULL GROUP BY tenant_id
        ) AS l ON l.tenant_id = a.tenant_id
        WHERE a.kind = 'tenant_held' AND b.balance_nanos <> coalesce(l.nanos, 0)
    """,
    "balances below zero": """
        SELECT a.account_id::text
        FROM accounts AS a
        INNER JOIN account_balances AS b USING (account_id)
        WHERE a.kind IN ('tenant_available', 'tenant_held') AND b.balance_nanos < 0
    """,
}


async def assert_ledger_holds(database: asyncpg.Connection) -> None:
    """Every rule holds for every row."""
    broken: dict[str, list[str]] = {}
    for rule, query in RULES.items():
        rows = await database.fetch(query)
        if rows:
            broken[rule] = [row[0] for row in rows]
    assert broken == {}
