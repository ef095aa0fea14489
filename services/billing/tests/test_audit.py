"""The auditor: silent about a busy ledger, also while it is posted to; what is planted is found."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from busbar_billing.domain.audit.findings import Check, Report
from busbar_billing.usecases.audit import LAST_ID, audit
from busbar_errors import Unavailable
from busbar_runtime.pytest_plugin import Database
from planted import Parts, later_id, plant, record

CHARGE = """
    (SELECT transfer_id FROM usage_records WHERE tenant_id = 'acme' AND amount_nanos > 0
    ORDER BY transfer_id DESC LIMIT 1)
"""
OF_CHARGE = f"transfer_id = {CHARGE}"
RECORD = "(SELECT request_id FROM usage_records ORDER BY request_id LIMIT 1)"
REVENUE = "(SELECT account_id FROM accounts WHERE kind = 'revenue')"
CLEARING = "(SELECT account_id FROM accounts WHERE kind = 'payments_clearing')"
FOREIGN = """
    (SELECT account_id FROM accounts WHERE kind = 'tenant_available' AND tenant_id = 'umbrella')
"""
AGAIN = later_id()
CHARGE_AGAIN = f"""
    WITH t AS (
        INSERT INTO transfers (transfer_id, kind, idempotency_key, tenant_id, request_id)
        SELECT '{AGAIN}', kind, 'again', tenant_id, request_id FROM transfers WHERE {OF_CHARGE}
        RETURNING transfer_id
    )
    INSERT INTO postings SELECT t.transfer_id, line, account_id, currency, amount_nanos
    FROM t, postings AS p WHERE p.{OF_CHARGE}
"""
VOID_LATE = """
    INSERT INTO usage_voids (request_id, tenant_id, reason)
    SELECT max(request_id::text)::uuid, 'acme', 'late' FROM usage_records
"""
STATEMENT_3 = """
    INSERT INTO statements
    (number, entity_id, sequence, kind, tenant_id, period_start, cut_at, closing_nanos, content)
    VALUES
    ('BB-000003', 'default', 3, 'statement', 'acme', '2026-10-01', now(), 0, '{}')
"""
USED_MORE = '{"input_token": {"before": 9999, "quantity": 1000}}'
A_MONTH = "SELECT 'month ' || to_char(month, 'YYYY-MM') || ' of acme' FROM tenant_months"
A_STATEMENT = "SELECT 'statement BB-000001'"
THE_TRANSFER = f"SELECT 'transfer ' || {CHARGE}::text"
THE_REQUEST = f"""
    SELECT 'req_' || replace(request_id::text, '-', '') FROM transfers WHERE {OF_CHARGE}
"""
THE_RECORD = f"SELECT 'req_' || replace({RECORD}::text, '-', '')"
LAST_RECORD = "SELECT 'req_' || replace(max(request_id::text), '-', '') FROM usage_records"


async def test_a_busy_ledger_has_no_findings(busy: Parts) -> None:
    report = Report()
    await audit(busy.books, LAST_ID, report, lambda _check, _rows: None)

    assert report.breaches == []
    assert {check for check, finding in report.findings if finding.rows} == set(Check)
    assert report.leaked_attempts == 2  # one was taken back, one never charged
    assert report.leaked_energy_mj == 2 * 1_234_567


async def test_it_is_the_same_wherever_the_replay_stops(busy: Parts) -> None:
    async with busy.pool.connection() as connection:
        ids = await connection.fetch("SELECT transfer_id FROM transfers ORDER BY 1")
    for settled in (UUID(int=0), ids[3]["transfer_id"], ids[-1]["transfer_id"]):
        assert await busy.audited(settled) == []


async def test_postings_under_way_are_never_taken_for_a_breach(busy: Parts) -> None:
    stopping = asyncio.Event()

    async def post_on() -> None:
        while not stopping.is_set():
            await busy.post(*[record() for _ in range(20)], *[record("umbrella")])

    posting = [asyncio.create_task(post_on()) for _ in range(3)]
    audits = [await busy.audited(UUID(int=0)) for _ in range(5)]
    stopping.set()
    await asyncio.gather(*posting)

    assert audits == [[]] * 5


@dataclass(frozen=True)
class Plant:
    """Harm done to a ledger, and what the auditor must say of it."""

    what: str
    statement: str
    which: str
    """A query for the name of the row."""
    check: str
    detail: str


PLANTED = [
    Plant(
        "a tampered posting",
        f"UPDATE postings SET amount_nanos = amount_nanos + 7 WHERE line = 0 AND {OF_CHARGE}",
        THE_TRANSFER,
        "transfers_balanced",
        "postings sum to 7 nanos of USD, not to zero",
    ),
    Plant(
        "a charge tampered on both sides",
        f"UPDATE postings SET amount_nanos = 2 * amount_nanos WHERE {OF_CHARGE}",
        THE_REQUEST,
        "charges_rated_again",
        "takes",
    ),
    Plant(
        "revenue moved to another account of ours",
        f"UPDATE postings SET account_id = {CLEARING} WHERE account_id = {REVENUE} AND {OF_CHARGE}",
        THE_REQUEST,
        "charges_rated_again",
        "0 reach revenue",
    ),
    Plant(
        "a posting that is gone",
        f"DELETE FROM postings WHERE line = 1 AND {OF_CHARGE}",
        THE_TRANSFER,
        "transfers_balanced",
        "not to zero",
    ),
    Plant(
        "a transfer that is gone",
        f"DELETE FROM transfers WHERE {OF_CHARGE}",
        THE_REQUEST,
        "records_charged_once",
        "does not charge it",
    ),
    Plant(
        "a tampered balance",
        f"UPDATE account_balances SET balance_nanos = 5 WHERE account_id = {REVENUE}",
        f"SELECT 'account ' || {REVENUE}::text",
        "balances_replayed",
        "revenue of ours in USD is kept as 5 nanos; its postings sum to ",
    ),
    Plant(
        "a record of another amount",
        f"UPDATE usage_records SET amount_nanos = amount_nanos + 1 WHERE request_id = {RECORD}",
        THE_RECORD,
        "charges_rated_again",
        "rated again it costs",
    ),
    Plant(
        "a record of other tokens",
        f"UPDATE usage_records SET output_tokens = 1000000 WHERE request_id = {RECORD}",
        THE_RECORD,
        "charges_rated_again",
        "rated again it costs",
    ),
    Plant(
        "a record rated by other prices",
        f"""
        UPDATE price_books SET created_at = created_at - interval '1 hour';
        UPDATE usage_records SET price_version = 1 WHERE request_id = {RECORD}
        """,  # the prices in force had long been known
        THE_RECORD,
        "charges_rated_again",
        "was rated by price book 1; in force was 2",
    ),
    Plant(
        "a record rated after more than was used",
        f"UPDATE usage_records SET consumed = '{USED_MORE}' WHERE request_id = {RECORD}",
        THE_RECORD,
        "charges_rated_again",
        "rated again it costs",
    ),
    Plant(
        "a record that is gone",
        f"DELETE FROM usage_records WHERE request_id = {RECORD}",
        f"SELECT 'transfer ' || transfer_id::text FROM usage_records WHERE request_id = {RECORD}",
        "records_charged_once",
        "of which there is no usage record",
    ),
    Plant(
        "a request charged twice",
        CHARGE_AGAIN,
        f"SELECT 'transfer {AGAIN}'",
        "records_charged_once",
        "again: its record names transfer ",
    ),
    Plant(
        "a void that nobody asked for",
        "DELETE FROM usage_voids",
        "SELECT 'transfer ' || transfer_id::text FROM transfers WHERE kind = 'void'",
        "records_charged_once",
        "which nobody asked for",
    ),
    Plant(
        "a void that was not carried out",
        VOID_LATE,
        LAST_RECORD,
        "records_charged_once",
        "is to be taken back, and is not",
    ),
    Plant(
        "a lease that holds more than it should",
        "UPDATE leases SET granted_nanos = granted_nanos + 3 WHERE tenant_id = 'acme'",
        "SELECT 'tenant acme'",
        "leases_held",
        "nanos of USD in leases; outstanding are ",
    ),
    Plant(
        "a lease closed with something in it",
        "UPDATE leases SET closed_at = now() WHERE tenant_id = 'acme'",
        "SELECT 'lease ' || lease_id::text FROM leases WHERE tenant_id = 'acme'",
        "leases_held",
        "is closed, with ",
    ),
    Plant(
        "a posting on another tenant's account",
        f"UPDATE postings SET account_id = {FOREIGN} WHERE amount_nanos < 0 AND {OF_CHARGE}",
        THE_TRANSFER,
        "transfers_balanced",
        "of tenant acme posts to tenant_available of umbrella",
    ),
    Plant(
        "credit that was spent and is kept as unspent",
        "UPDATE promotional_unspent SET unspent_nanos = unspent_nanos + 1 WHERE tenant_id = 'acme'",
        "SELECT 'credit ' || credit_id::text FROM promotional_credits WHERE tenant_id = 'acme'",
        "credits_spent",
        "nothing spent",
    ),
    Plant(
        "a month that was spent less in",
        "UPDATE tenant_months SET spent_nanos = spent_nanos - 1 WHERE tenant_id = 'acme'",
        A_MONTH,
        "months_add_up",
        "nanos; its records add up to ",
    ),
    Plant(
        "a rollup without a request",
        "UPDATE usage_rollups SET requests = requests - 1"
        " WHERE tenant_id = 'acme' AND bucket_s = 3600",
        A_MONTH,
        "months_add_up",
        "rolled up by 3600 s is ",
    ),
    Plant(
        "an allowance that seems unused",
        "UPDATE monthly_use SET quantity = quantity - 7 WHERE tenant_id = 'acme'",
        A_MONTH,
        "months_add_up",
        "input_token of chat-small is metered as ",
    ),
    Plant(
        "energy that was not booked",
        "DELETE FROM transfers WHERE idempotency_key = 'energy_cost:r1.s1.n1:run-1:1'",
        "SELECT 'energy_cost:r1.s1.n1:run-1:1'",
        "energy_booked",
        "booked is nothing",
    ),
    Plant(
        "energy that was measured otherwise",
        "UPDATE work_measured SET energy_mj = 1 WHERE agent_run_id = 'run-2'",
        "SELECT 'energy_cost:r1.s1.n1:run-2:1'",
        "energy_booked",
        "booked is {'USD': 84",
    ),
    Plant(
        "work measured for somebody else",
        f"UPDATE work_measured SET tenant_id = 'umbrella' WHERE request_id = {RECORD}",
        THE_RECORD,
        "work_joined",
        "for umbrella and charged to acme",
    ),
    Plant(
        "a cost record that was lost on its way",
        """
        INSERT INTO work_measured
        SELECT node, agent_run_id, 99, request_id, attempt + 9, tenant_id, deployment, finished,
            input_tokens, output_tokens, queue_us, compute_us, NULL, ended_at,
            received_at - interval '2 minutes'
        FROM work_measured WHERE agent_run_id = 'run-1' AND sequence = 1
        """,
        "SELECT 'r1.s1.n1 run-1'",
        "work_numbered",
        "number 99 arrived, number 98 did not",
    ),
    Plant(
        "a gap in the numbers of statements",
        STATEMENT_3,
        "SELECT 'statement BB-000003'",
        "statements_numbered",
        "follows number 1 of default as number 3",
    ),
    Plant(
        "the last statement gone",
        "DELETE FROM statements",
        "SELECT 'entity default'",
        "statements_numbered",
        "has given out 1 numbers; the last that is kept is number 0",
    ),
    Plant(
        "a statement kept with another closing balance",
        "UPDATE statements SET closing_nanos = closing_nanos + 5",
        A_STATEMENT,
        "statements_recounted",
        "and is kept with ",
    ),
    Plant(
        "a statement that says another closing balance",
        """
        UPDATE statements SET
            closing_nanos = 5, content = jsonb_set(content, '{closing_nanos}', '5')
        """,
        A_STATEMENT,
        "statements_recounted",
        "says closing_nanos 5; the journal comes to ",
    ),
    Plant(
        "a line of a statement for another amount",
        "UPDATE statements SET content = jsonb_set(content, '{lines,0,amount_nanos}', '7')",
        A_STATEMENT,
        "statements_recounted",
        "has a line that the journal does not: payments",
    ),
    Plant(
        "a statement without a line",
        "UPDATE statements SET content = content #- '{lines,1}'",
        A_STATEMENT,
        "statements_recounted",
        "lacks a line that the journal has: ",
    ),
    Plant(
        "a statement that nobody can read",
        "UPDATE statements SET content = content - 'lines'",
        A_STATEMENT,
        "statements_recounted",
        "cannot be read",
    ),
]


@pytest.mark.parametrize("planted_", PLANTED, ids=lambda one: one.what)
async def test_what_is_planted_is_found_and_named(
    ledger_copy: Database, busy: Parts, planted_: Plant
) -> None:
    subject = await plant(ledger_copy, planted_.statement, fetch=planted_.which)

    found = await busy.audited()
    from_seals = await busy.audited_from_seals()
    named = [one for one in found if (one.check, one.subject) == (planted_.check, subject)]
    assert any(planted_.detail in one.detail for one in named), found
    assert from_seals == found


async def test_an_answer_that_was_delivered_and_not_charged_is_found(busy: Parts) -> None:
    missing = record()
    busy.stream.add([record("nobody"), record(input_tokens=10**10), missing])

    found = await busy.audited()
    assert [(one.check, one.subject) for one in found] == [
        ("answers_charged", f"req_{missing.request_id.hex}")
    ]  # and not what can never be billed: that is a dead letter


async def test_what_a_lagging_copy_of_the_stream_lacks_is_not_taken_for_compared(
    busy: Parts,
) -> None:
    busy.stream.copied = max(busy.stream.kept)
    missing = record()
    busy.stream.add([missing])
    with pytest.raises(Unavailable):
        await busy.audited()
    busy.stream.copied = None

    assert [one.subject for one in await busy.audited()] == [f"req_{missing.request_id.hex}"]


async def test_what_has_left_the_end_of_the_stream_is_not_waited_for(busy: Parts) -> None:
    busy.stream.posting = {max(busy.stream.kept) + 3}

    assert await busy.audited() == []


async def test_a_charge_without_an_answer_is_found(busy: Parts) -> None:
    delivered = busy.stream.kept[1]
    lost, *rest = delivered.records
    busy.stream.kept[1] = replace(delivered, records=rest)

    found = await busy.audited()
    assert [(one.check, one.subject) for one in found] == [
        ("charges_answered", f"req_{lost.request_id.hex}")
    ]


async def test_a_message_that_is_gone_was_no_answer_unless_it_was_too_old(busy: Parts) -> None:
    gone = busy.stream.kept.pop(1)
    found = await busy.audited()
    busy.stream.first = 2
    assert [one.check for one in found] == ["charges_answered"] * len(gone.records)
    assert await busy.audited() == []


async def test_a_charge_that_names_no_message_is_found(ledger_copy: Database, busy: Parts) -> None:
    subject = await plant(
        ledger_copy,
        "UPDATE usage_origins SET kept_since = now() - interval '1 day'",
        f"UPDATE usage_records SET stream_sequence = 0 WHERE request_id = {RECORD}",
        fetch=THE_RECORD,
    )

    found = await busy.audited()
    assert [(one.check, one.subject) for one in found] == [("charges_answered", subject)]


async def test_what_is_kept_otherwise_than_delivered_is_found(busy: Parts) -> None:
    delivered = busy.stream.kept[1]
    one, *rest = delivered.records
    other = replace(one, output_tokens=11, node="r1.s1.n2")
    busy.stream.kept[1] = replace(delivered, records=[other, *rest])

    found = await busy.audited()
    assert {(one.check, one.detail) for one in found} == {
        ("answers_charged", "was delivered with output_tokens 11; it is kept with 10"),
        ("answers_charged", "was delivered with node 'r1.s1.n2'; it is kept with 'r1.s1.n1'"),
    }


async def test_an_answer_that_was_committed_twice_is_one(busy: Parts) -> None:
    busy.stream.add(busy.stream.kept[1].records)

    assert await busy.audited() == []


async def test_the_auditor_can_read_and_nothing_else(busy: Parts) -> None:
    async with busy.pool.as_auditor() as connection:
        assert await connection.fetchval("SELECT count(*) FROM usage_records") == 11
    for statement in (
        "INSERT INTO transfers (transfer_id, kind, idempotency_key) VALUES (uuidv7(), 'void', 'x')",
        "UPDATE leases SET posted_nanos = 0",
        "SELECT * FROM api_keys",
        "SET ROLE postgres",
    ):
        with pytest.raises((asyncpg.PostgresError, Unavailable)):
            await _as_auditor(busy, statement)


async def _as_auditor(busy: Parts, statement: str) -> Any:
    async with busy.pool.as_auditor() as connection:
        return await connection.execute(statement)
