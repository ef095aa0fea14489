"""Money that only SQL moved, and statements that were changed: found, however well made."""

from __future__ import annotations

import pytest
from busbar_runtime.pytest_plugin import Database
from planted import Parts, plant

CLEARING = "(SELECT account_id FROM accounts WHERE kind = 'payments_clearing')"
OWN = "(SELECT account_id FROM accounts WHERE kind = 'tenant_available' AND tenant_id = 'acme')"
NEW = "ffffffff-0000-7000-8000-000000000000"
OTHER_TAX = """
    UPDATE statements SET content = jsonb_set(
        jsonb_set(content, '{tax,ppm}', '70000'), '{tax_nanos}', to_jsonb(
            round((content ->> 'taxable_nanos')::numeric * 70000 / 1070000)::int8
        )
    )
"""
TOP_UP = f"""
    WITH t AS (
        INSERT INTO transfers (transfer_id, kind, idempotency_key, tenant_id, reason)
        VALUES ('{NEW}', 'top_up', 'top_up:acme:gift', 'acme', 'gift') RETURNING transfer_id
    ), p AS (
        INSERT INTO postings SELECT t.transfer_id, v.line, v.account_id, 'USD', v.nanos
        FROM t, (
            VALUES (0, {CLEARING}, -1000000), (1, {OWN}, 1000000)
        ) AS v (line, account_id, nanos)
    )
    UPDATE account_balances AS b SET balance_nanos = b.balance_nanos + v.nanos
    FROM (VALUES ({CLEARING}, -1000000), ({OWN}, 1000000)) AS v (account_id, nanos)
    WHERE b.account_id = v.account_id
"""
OTHER_REASON = "UPDATE transfers SET reason = 'another' WHERE kind = 'refund'"
NO_DAY = "DELETE FROM warranted_since"
OF_ACME = "FROM transfers WHERE kind = 'top_up' AND tenant_id = 'acme'"
NO_WARRANT = f"""
    DELETE FROM warrants WHERE subject IN (SELECT 'transfer ' || transfer_id {OF_ACME})
"""
A_REFUND = "SELECT 'transfer ' || transfer_id FROM transfers WHERE kind = 'refund'"
A_TOP_UP = f"SELECT 'transfer ' || transfer_id {OF_ACME}"


@pytest.mark.parametrize(
    ("harm", "which", "check"),
    [
        pytest.param([OTHER_TAX], "SELECT 'statement BB-000001'", "recounted", id="tax"),
        pytest.param([TOP_UP], f"SELECT 'transfer {NEW}'", "asked_for", id="top-up"),
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


async def test_what_was_written_before_there_were_warrants_needs_none(
    ledger_copy: Database, busy: Parts
) -> None:
    since = "UPDATE warranted_since SET since = clock_timestamp() + interval '1 hour'"
    await plant(ledger_copy, since, "DELETE FROM warrants")

    assert await busy.audited() == []
