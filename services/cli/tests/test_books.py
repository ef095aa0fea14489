"""Statements, credit notes and the audit, against the real admin API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from busbar_contracts.gateway.v1 import usage_pb2
from busbar_runtime.platform import Platform
from harness.command import Busbar, Said
from harness.database import in_database
from harness.polling import says
from harness.usage_sent import publish_usage
from usage_records import answered


def test_statements_are_listed_and_what_cannot_be_closed_is_refused(busbar: Busbar) -> None:
    busbar("tenant", "create", "Closing Ltd", "--tenant-id", "closing")
    early = busbar("statement", "close", "closing", "2026-01")
    late = busbar("statement", "close", "closing", "2099-01")
    missing = busbar("statement", "show", "BB-999999")
    document = busbar("statement", "show", "BB-999999", "--document", "pdf")
    note = busbar(
        "statement", "credit-note", "BB-999999", "2.50", "--reason", "slow", "--reference", "t1"
    )

    assert busbar("statement", "list", "--tenant", "closing", "--json").json == {"items": []}
    assert (early.status, late.status) == (2, 1)
    assert "before tenant" in early.err
    assert "not over" in late.err
    assert (missing.status, document.status, note.status) == (3, 3, 3)


def test_a_credit_note_gives_money_of_a_statement_back_once(
    busbar: Busbar, platform: Platform
) -> None:
    busbar("tenant", "create", "Noted Ltd", "--tenant-id", "noted")
    ended = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    since, admitted = ended - timedelta(days=2), ended - timedelta(days=1)
    in_database(platform, f"UPDATE tenants SET created_at = '{since}' WHERE tenant_id = 'noted';")
    record = answered("noted", admitted_unix_ns=int(admitted.timestamp()) * 10**9)
    batch = usage_pb2.UsageRecorded(gateway_id="g1", records=[record])
    publish_usage(platform, batch.SerializeToString())
    assert says(lambda: busbar("usage", "--tenant", "noted").out, "$0.0001")
    closed = busbar("statement", "close", "noted", f"{since:%Y-%m}", "--json").json
    note = ("statement", "credit-note", closed["number"], "0.00004", "--reason", "slow")
    line = busbar(*note, "--reference", "t1")
    again = busbar(*note, "--reference", "t1", "--json").json
    second = busbar(*note, "--reference", "t2", "--json").json
    too_much = busbar(*note, "--reference", "t3")

    assert closed["charged_nanos"] == 100_000
    assert line == Said(0, f"{again['number']}  gives $0.00004 of {closed['number']} back\n", "")
    assert (again["corrects"], again["credited_nanos"]) == (closed["number"], 40_000)
    assert second["number"] not in {again["number"], closed["number"]}
    assert too_much.status != 0
    assert f"corrects {closed['number']}" in busbar("statement", "list", "--tenant", "noted").out
    assert busbar("balance", "noted", "--json").json["balance_nanos"] == -20_000


def test_the_audit_names_what_is_wrong_and_ends_with_1(busbar: Busbar, platform: Platform) -> None:
    busbar("tenant", "create", "Audited Ltd", "--tenant-id", "audited")
    busbar("tenant", "topup", "audited", "12", "--reference", "a1")
    right = busbar("audit")
    in_database(platform, "UPDATE account_balances SET balance_nanos = balance_nanos + 1")
    wrong, as_json = busbar("audit"), busbar("audit", "--json")
    in_database(platform, "UPDATE account_balances SET balance_nanos = balance_nanos - 1")
    again = busbar("audit", "--json")

    assert right.status == 0
    assert "balances replayed" in right.out
    assert wrong.status == 1
    assert "tenant_available of audited in USD is kept as 12000000001 nanos" in wrong.out
    assert "the books are not right" in wrong.err
    assert as_json.status == 1
    assert as_json.json["clean"] is False
    assert again.json["clean"] is True
    assert busbar("leakage", "--json").json == {"items": []}
