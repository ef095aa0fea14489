"""Money that only SQL moved, and statements that were changed: found, however well made."""

from __future__ import annotations

import asyncpg
import pytest
from billing_parts import WARRANTS
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.domain.audit.findings import Check
from busbar_runtime.pytest_plugin import Database
from planted import Parts, later_id, plant, record
from uuid_utils.compat import uuid7

CLEARING = "(SELECT account_id FROM accounts WHERE kind = 'payments_clearing')"
OWN = "(SELECT account_id FROM accounts WHERE kind = 'tenant_available' AND tenant_id = 'acme')"
NEW = later_id()
THE_NEW = f"SELECT 'transfer {NEW}'"
OTHER_TAX = """
    UPDATE statements SET content = jsonb_set(
        jsonb_set(content, '{tax,ppm}', '70000'), '{tax_nanos}', to_jsonb(
            round((content ->> 'taxable_nanos')::numeric * 70000 / 1070000)::int8
        )
    )
"""
OWES = "(SELECT account_id FROM accounts WHERE kind = 'tenant_receivable' AND tenant_id = 'acme')"
CAN_OWE = """
    INSERT INTO accounts (kind, tenant_id, currency)
    VALUES ('tenant_receivable', 'acme', 'USD') ON CONFLICT DO NOTHING
"""
A_CHARGE = """
    (SELECT transfer_id FROM transfers WHERE kind = 'charge' AND tenant_id = 'acme'
    ORDER BY transfer_id DESC LIMIT 1)
"""


def moved(transfer: str, source: str) -> list[str]:
    """Postings more, of money from an account into a tenant's balance, projected as ever."""
    lines = f"(VALUES (8, {source}, -1000000), (9, {OWN}, 1000000)) AS v (line, account_id, nanos)"
    return [
        f"INSERT INTO postings SELECT {transfer}, line, account_id, 'USD', nanos FROM {lines}",
        f"""
        INSERT INTO account_balances AS b SELECT v.account_id, v.nanos FROM {lines}
        ON CONFLICT (account_id)
        DO UPDATE SET balance_nanos = b.balance_nanos + excluded.balance_nanos
        """,
    ]


def made_up(kind: str, source: str) -> list[str]:
    """A transfer of money from an account into a tenant's balance."""
    head = f"""
        INSERT INTO transfers (transfer_id, kind, idempotency_key, tenant_id, reason)
        VALUES ('{NEW}', '{kind}', '{kind}:acme:gift', 'acme', 'gift')
    """
    return [CAN_OWE, head, *moved(f"'{NEW}'::uuid", source)]


TAKEN_BACK = """
    INSERT INTO usage_voids (request_id, tenant_id, reason) VALUES ($1, 'umbrella', 'a gift')
"""
# As billing does where the lease is closed, and with a balance that follows by itself.
VOID = f"""
    WITH charge AS (
        SELECT * FROM transfers WHERE request_id = $1 AND kind = 'charge'
    ), void AS (
        INSERT INTO transfers (transfer_id, kind, idempotency_key, tenant_id, request_id)
        SELECT '{NEW}', 'void', 'void:' || request_id, tenant_id, request_id FROM charge
        RETURNING transfer_id
    )
    INSERT INTO postings (transfer_id, line, account_id, currency, amount_nanos)
    SELECT void.transfer_id, p.line, coalesce(b.account_id, p.account_id), p.currency,
        -p.amount_nanos
    FROM void, charge INNER JOIN postings AS p USING (transfer_id)
    INNER JOIN accounts AS a USING (account_id)
    LEFT JOIN accounts AS b
    ON a.kind = 'tenant_held' AND b.kind = 'tenant_available' AND b.tenant_id = a.tenant_id
"""
OTHER_REASON = "UPDATE transfers SET reason = 'another' WHERE kind = 'refund'"
A_VOID = "SELECT transfer_id FROM transfers WHERE kind = 'void' AND request_id = $1"
PUT_OFF = """
    INSERT INTO warranted_since (what, since)
    SELECT DISTINCT what, clock_timestamp() + interval '1 hour' FROM warranted_since
"""
OTHER_WORDS = """
    UPDATE statements SET content = jsonb_set(content, '{reason}', '"another"')
    WHERE kind = 'credit_note'
"""
NO_DAY = "DELETE FROM warranted_since WHERE what = 'transfers'"
OF_ACME = "FROM transfers WHERE idempotency_key = 'top_up:acme:first'"
NO_WARRANT = f"""
    DELETE FROM warrants WHERE subject IN (SELECT 'transfer ' || transfer_id {OF_ACME})
"""
A_REFUND = "SELECT 'transfer ' || transfer_id FROM transfers WHERE kind = 'refund'"
A_TOP_UP = f"SELECT 'transfer ' || transfer_id {OF_ACME}"


@pytest.mark.parametrize(
    ("harm", "which", "check"),
    [
        pytest.param([OTHER_TAX], "SELECT 'statement BB-000001'", "recounted", id="tax"),
        pytest.param(made_up("top_up", CLEARING), THE_NEW, "asked_for", id="top-up"),
        pytest.param(made_up("lease_release", CLEARING), THE_NEW, "balanced", id="release"),
        pytest.param(made_up("energy_cost", CLEARING), THE_NEW, "balanced", id="energy"),
        pytest.param(made_up("receivable_paid", OWES), THE_NEW, "balanced", id="lent"),
        pytest.param(
            [CAN_OWE, *moved(A_CHARGE, OWES)],
            f"SELECT 'transfer ' || {A_CHARGE}",
            "balanced",
            id="charge-and-lent",
        ),
        pytest.param([OTHER_REASON], A_REFUND, "asked_for", id="refund"),
        pytest.param([NO_DAY, NO_WARRANT], A_TOP_UP, "asked_for", id="warrant-gone"),
    ],
)
async def test_what_billing_did_not_write_is_found_and_nothing_else(
    ledger_copy: Database, busy: Parts, harm: list[str], which: str, check: str
) -> None:
    subject = await plant(ledger_copy, *harm, fetch=which)

    found = await busy.audited()
    from_seals = await busy.audited_from_seals()

    named = {(one.check.value.split("_", 1)[1], one.subject) for one in found}
    assert named == {(check, subject)}
    assert from_seals == found


async def test_a_credit_note_that_says_another_reason_is_found(
    ledger_copy: Database, busy: Parts
) -> None:
    statements = Statements(busy.pool, Journal(busy.pool, WARRANTS), busy.prices)
    note = await statements.credit("BB-000001", 1_000, "slow", "ticket 1", uuid7())
    assert await busy.audited() == []

    await plant(ledger_copy, OTHER_WORDS)
    found = await busy.audited()

    assert [(one.check, one.subject) for one in found] == [
        (Check.STATEMENTS_RECOUNTED, f"statement {note.number}")
    ]


@pytest.mark.parametrize("charged", [True, False], ids=["of-a-charge", "of-what-is-not-posted-yet"])
async def test_a_void_that_no_gateway_sent_is_found(busy: Parts, *, charged: bool) -> None:
    free = record("umbrella")
    if charged:
        await busy.post(free)
    async with busy.pool.transaction() as connection:  # whatever the service itself may write
        await connection.execute(TAKEN_BACK, free.request_id)
        if charged:
            await connection.execute(VOID, free.request_id)
    if not charged:
        await busy.post(free)

    found = await busy.audited()

    async with busy.pool.connection() as connection:
        void = await connection.fetchval(A_VOID, free.request_id)
    assert [(one.check, one.subject) for one in found] == [
        (Check.TRANSFERS_ASKED_FOR, f"transfer {void}")
    ]
    assert await busy.audited_from_seals() == found


async def test_the_owner_may_put_off_when_warrants_are_asked_for(
    ledger_copy: Database, busy: Parts
) -> None:
    await plant(ledger_copy, "DELETE FROM warrants")
    assert await busy.audited()

    owner = await asyncpg.connect(ledger_copy.admin_dsn)
    await owner.execute(PUT_OFF)
    await owner.close()

    assert await busy.audited() == []
