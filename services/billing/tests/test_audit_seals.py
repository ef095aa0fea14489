"""Seals: what was audited and nobody changed is not walked again; what was changed is noticed."""

from __future__ import annotations

import asyncio

import pytest
from busbar_billing.adapters.auditor import Auditor, Run, State
from busbar_billing.adapters.postgres.database import READING_MAX
from busbar_billing.domain.audit.findings import Check
from busbar_billing.domain.audit.seals import Part
from busbar_billing.usecases.audit_seals import FIRST_ID, Seals
from busbar_errors import Conflict
from busbar_runtime.pytest_plugin import Database
from harness.polling import eventually
from planted import MOMENT, Parts, plant, record

OF_A_CHARGE = "(SELECT transfer_id FROM transfers WHERE kind = 'charge' LIMIT 1)"
OF_A_VOID = "(SELECT request_id FROM transfers WHERE kind = 'void')"
EARLY = "00000000-0000-7000-8000-000000000001"
CHANGES = {
    "a transfer": "UPDATE transfers SET idempotency_key = idempotency_key || ' '",
    "a transfer gone": f"DELETE FROM transfers WHERE transfer_id = {OF_A_CHARGE}",
    "a posting": f"UPDATE postings SET line = line + 7 WHERE transfer_id = {OF_A_CHARGE}",
    "a posting more": f"""
        INSERT INTO postings SELECT transfer_id, 9, account_id, currency, 0 FROM postings
        WHERE transfer_id = {OF_A_CHARGE} LIMIT 1
    """,
    "an account": "UPDATE accounts SET currency = 'EUR' WHERE kind = 'revenue'",
    "where a request ran": "UPDATE usage_records SET node = 'r1.s1.n2'",
    "a record gone": f"DELETE FROM usage_records WHERE transfer_id = {OF_A_CHARGE}",
    "a record more": f"""
        INSERT INTO usage_records
        SELECT (jsonb_populate_record(u, jsonb_build_object('request_id', '{EARLY}'))).*
        FROM usage_records AS u WHERE transfer_id = {OF_A_CHARGE}
    """,
    "who took it back": f"DELETE FROM usage_voids WHERE request_id = {OF_A_VOID}",
    "a void gone": "DELETE FROM transfers WHERE kind = 'void'",
    "a price": "UPDATE prices SET amount_nanos = amount_nanos + 1 WHERE version = 2",
    "a tier": "UPDATE price_tiers SET amount_nanos = amount_nanos + 1",
    "a quantum": "UPDATE price_books SET charge_quantum_nanos = 7 WHERE version = 2",
    "a price book of long ago": """
        INSERT INTO price_books
        (version, currency, effective_from, charge_quantum_nanos, tenant_id, created_at)
        OVERRIDING SYSTEM VALUE
        SELECT 99, currency, effective_from + interval '1 second', 1, tenant_id, created_at
        FROM price_books WHERE version = 2
    """,
    "a seal of fewer rows": "UPDATE audit_seals SET rows = rows - 1 WHERE rows > 1",
    "a seal of other rows": """
        DELETE FROM audit_seals WHERE (part, upto) IN
        (SELECT part, upto FROM audit_seals WHERE part = 'journal' ORDER BY upto LIMIT 1)
    """,
}


async def test_what_is_sealed_is_not_walked_and_counts_all_the_same(busy: Parts) -> None:
    async with busy.pool.connection() as connection:
        transfers = await connection.fetchval("SELECT count(*) FROM transfers")
        records = await connection.fetchval("SELECT count(*) FROM usage_records")
    closed = await busy.closed()
    await busy.post(*[record() for _ in range(5)])

    again = await busy.closed()
    assert closed.broken is again.broken is None
    assert closed.rows[Part.JOURNAL] == again.rows[Part.JOURNAL] == transfers > 8
    assert closed.rows[Part.INBOX] == again.rows[Part.INBOX] == records > 8
    assert await busy.audited_from_seals() == []
    assert (await busy.closed()).rows[Part.JOURNAL] == transfers + 5


@pytest.mark.parametrize("change", CHANGES)
async def test_whatever_was_changed_breaks_a_seal(
    ledger_copy: Database, busy: Parts, change: str
) -> None:
    await plant(ledger_copy, CHANGES[change])

    closed = await busy.closed()
    assert closed.broken is not None
    assert {closed.after(part) for part in Part} == {FIRST_ID}
    assert closed.posted == {}
    assert closed.unchanged_rows == 0


async def test_seals_that_were_taken_away_leave_more_to_walk(
    ledger_copy: Database, busy: Parts
) -> None:
    whole = await busy.closed()
    await plant(
        ledger_copy,
        "DELETE FROM audit_seals WHERE (part, upto) IN"
        " (SELECT part, upto FROM audit_seals WHERE part = 'journal' ORDER BY upto DESC LIMIT 2)",
    )

    closed = await busy.closed()
    assert closed.broken is None
    assert 0 < closed.rows[Part.JOURNAL] < whole.rows[Part.JOURNAL]
    assert await busy.audited_from_seals() == []


async def test_nobody_makes_seals_without_the_secret(busy: Parts) -> None:
    forger = Seals(busy.seals.store, b"what the database knows", piece=4)
    await forger.keep(await busy.closed(forger))

    assert (await busy.closed(forger)).broken is None
    assert (await busy.closed()).broken is not None


async def test_nothing_is_sealed_that_is_not_clean(ledger_copy: Database, busy: Parts) -> None:
    before = await busy.seals.store.kept()
    await plant(ledger_copy, "UPDATE usage_records SET amount_nanos = amount_nanos + 1")

    assert await busy.audited_from_seals() != []
    assert await busy.seals.store.kept() == before


async def finished(auditor: Auditor, *, full: bool = False) -> Run:
    return await ended(auditor.start(full=full))


async def ended(run: Run) -> Run:
    async def look() -> State:
        return run.state

    await eventually(
        look, within_s=30, what="the audit ends", until=lambda now: now is not State.RUNNING
    )
    assert run.state is State.FINISHED, run.reason
    return run


async def test_an_audit_relies_on_the_one_before_it_unless_it_is_full(
    ledger_copy: Database, busy: Parts
) -> None:
    auditor = Auditor(busy.books, busy.seals, sealed_after=-MOMENT)
    await busy.seals.store.keep([])
    first, second = await finished(auditor), await finished(auditor)
    full = await finished(auditor, full=True)
    await plant(ledger_copy, "UPDATE usage_records SET amount_nanos = amount_nanos + 1")
    harmed = await finished(auditor)

    assert [first.unchanged_rows, full.unchanged_rows, harmed.unchanged_rows] == [0, 0, 0]
    assert second.unchanged_rows > 16
    assert [one.seals_broken for one in (first, second, full, harmed)] == [False] * 3 + [True]
    assert [one.report.total > 0 for one in (first, second, full, harmed)] == [False] * 3 + [True]
    for check in (Check.TRANSFERS_BALANCED, Check.CHARGES_RATED_AGAIN, Check.RECORDS_CHARGED_ONCE):
        assert second.report.of(check).rows == full.report.of(check).rows


async def test_who_asks_for_a_full_audit_is_not_given_one_that_relies_on_seals(
    busy: Parts,
) -> None:
    auditor = Auditor(busy.books, busy.seals, sealed_after=-MOMENT)
    relying = auditor.start()
    with pytest.raises(Conflict, match=f"audit {relying.audit_id} runs, which relies on seals"):
        auditor.start(full=True)

    assert auditor.start() is relying
    await ended(relying)
    full = auditor.start(full=True)
    assert full.full
    assert auditor.start() is auditor.start(full=True) is full
    await ended(full)


async def test_two_that_seal_at_the_same_moment_leave_seals_that_fit(busy: Parts) -> None:
    closed = await busy.closed()
    await asyncio.gather(*[busy.seals.keep(closed) for _ in range(4)])

    assert (await busy.closed()).broken is None
    assert (await busy.closed()).unchanged_rows == closed.unchanged_rows > 0


async def test_counting_a_statement_again_may_take_as_long_as_issuing_it(busy: Parts) -> None:
    async with busy.pool.as_auditor() as connection:
        allowed = await connection.fetchval("SELECT current_setting('statement_timeout')::interval")

    assert allowed >= READING_MAX
