"""The monthly close: what a statement says, and that nothing changes it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
from billing_parts import Gateway, Service
from busbar_billing.domain.ledger import TransferKind
from busbar_billing.domain.prices import Component
from busbar_billing.domain.statement_content import read_content, write_content
from busbar_billing.domain.statements import (
    Charged,
    Facts,
    Month,
    Movement,
    Party,
    Section,
    Tax,
    Used,
    checked_month,
    close,
    contained_tax,
    month_of,
    next_month_to_close,
)
from busbar_billing.usecases.statements import close_month
from busbar_errors import Conflict, NotFound, Rejected
from hypothesis import given
from hypothesis import strategies as st
from past_books import Books, NothingWaits, at

MONTH = Month(date(2026, 9, 1))
VAT = Tax("VAT", 190_000)

amounts = st.integers(-(10**16), 10**16)
movements = st.builds(
    Movement,
    kind=st.sampled_from([kind for kind in TransferKind if kind is not TransferKind.CHARGE]),
    day=st.dates(date(2026, 9, 1), date(2026, 9, 30)),
    reason=st.text(max_size=20),
    amount_nanos=amounts,
    count=st.integers(1, 5),
)
models = st.sampled_from(["tiny-lm", "embed", "simple"])
charged = st.builds(
    Charged,
    model=models,
    late=st.booleans(),
    requests=st.integers(1, 10**6),
    amount_nanos=st.integers(-(10**16), 0),
)
used = st.builds(
    Used,
    model=models,
    late=st.booleans(),
    component=st.sampled_from(Component),
    quantity=st.integers(0, 10**12),
    price_nanos=st.integers(0, 10**9),
    per_units=st.sampled_from([1, 1_000, 1_000_000]),
)


@given(amounts, st.lists(movements, max_size=8), st.lists(charged, max_size=5), st.lists(used))
def test_the_lines_sum_to_the_change_of_the_balance(
    opening: int, moved: list[Movement], charges: list[Charged], uses: list[Used]
) -> None:
    change = sum(one.amount_nanos for one in [*moved, *charges])
    made = close(Facts(MONTH, "USD", opening, moved, charges, uses, opening + change), VAT)

    assert sum(line.amount_nanos for line in made.lines) == change
    assert made.closing_nanos - made.opening_nanos == change
    assert sum(made.total(section) for section in Section) == change
    party = Party("acme", "Acme", ("Street 1",), "DE1")
    kept = json.loads(json.dumps(write_content(made, party, party)))
    assert read_content(kept) == (made, party, party)


def test_a_journal_that_does_not_add_up_is_not_closed() -> None:
    with pytest.raises(Conflict, match="auditor"):
        close(Facts(MONTH, "USD", 5, [], [], [], 6), Tax())


@given(st.integers(0, 10**18), st.integers(0, 10**6))
def test_contained_tax_is_the_share_of_the_gross(gross: int, ppm: int) -> None:
    tax = contained_tax(gross, Tax("VAT", ppm))
    net = gross - tax

    assert abs(net * ppm - tax * 1_000_000) <= 1_000_000 + ppm


def test_usage_is_told_apart_by_model_and_component_with_rounding_of_its_own() -> None:
    uses = [
        Used("tiny-lm", False, Component.INPUT_TOKEN, 1_005, 100_000_001, 1_000_000),
        Used("tiny-lm", False, Component.OUTPUT_TOKEN, 0, 400_000_000, 1_000_000),
    ]
    made = close(
        Facts(MONTH, "USD", 0, [], [Charged("tiny-lm", False, 3, -100_502)], uses, -100_502), Tax()
    )

    assert [(line.text, line.amount_nanos) for line in made.lines] == [
        ("input token", -100_500),
        ("rounding of 3 requests", -2),
    ]


@pytest.mark.parametrize("text", ["2026-13", "2026-1", "26-01", "2026-01-01", "", "\uff12026-01"])
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(Rejected):
        checked_month(text)


def test_months_follow_one_another() -> None:
    assert str(checked_month("2026-12").following) == "2027-01"
    assert checked_month("2026-12").ends_at == datetime(2027, 1, 1, tzinfo=UTC)
    assert month_of(datetime(2026, 9, 30, 23, 59, tzinfo=UTC)) == MONTH
    assert next_month_to_close(None, datetime(2026, 9, 2, tzinfo=UTC)) == MONTH
    assert next_month_to_close(MONTH, datetime(2020, 1, 1, tzinfo=UTC)) == MONTH.following


class Waits:
    """Usage is waiting."""

    async def require_posted(self) -> None:
        """Refuse."""
        raise Conflict("usage is not posted yet")


async def test_a_month_is_closed_from_the_journal_and_the_next_goes_on_from_there(
    books: Books,
) -> None:
    await books.move("top_up", 10**9, at(8, 15), "wire 1")
    await books.charge(at(8, 20), at(8, 20))
    taken_back = await books.charge(at(8, 21), at(8, 21))
    await books.post("void", 100_000, at(8, 21, 13), taken_back)
    midnight = await books.charge(at(8, 31, 23), at(9, 1, 1), tokens=7)
    await books.move("refund", 50_000, at(9, 2), "sorry")
    await books.charge(at(9, 3), at(9, 3), tokens=10)

    august = await books.close("2026-08")
    await books.charge(at(8, 30), datetime.now(UTC), tokens=3)
    await books.post("void", 700, datetime.now(UTC), midnight)
    september = await books.close("2026-09")

    shown = [(line.section, line.text, line.amount_nanos) for line in august.statement.lines]
    assert shown == [
        (Section.PAYMENTS, "Payment: wire 1", 10**9),
        (Section.USAGE, "input token", -100_700),
    ]
    assert august.statement.lines[1].quantity == 1_007
    assert august.statement.closing_nanos == 10**9 - 100_700
    shown = [(line.section, line.text, line.amount_nanos) for line in september.statement.lines]
    assert shown == [
        (Section.USAGE, "input token", -1_000),
        (Section.LATE_USAGE, "input token", -300),
        (Section.ADJUSTMENTS, "Charges of earlier months taken back", 700),
        (Section.ADJUSTMENTS, "Refund: sorry", 50_000),
    ]
    assert september.statement.opening_nanos == august.statement.closing_nanos


async def test_closing_again_is_the_same_statement_even_at_the_same_moment(books: Books) -> None:
    await books.move("top_up", 5, at(8, 15))
    several = await asyncio.gather(*(books.close("2026-08") for _ in range(5)))
    again = await books.close("2026-08")

    assert {one.number for one in several} == {again.number}
    assert again.repeated
    assert replace(several[0], repeated=True) == again


async def test_what_cannot_be_closed_is_refused(books: Books) -> None:
    now = datetime.now(UTC)
    for month, error, why in [
        ("2026-07", Rejected, "before tenant"),
        (f"{now:%Y-%m}", Conflict, "not over"),
        ("2026-09", Conflict, "close 2026-08 first"),
    ]:
        with pytest.raises(error, match=why):
            await books.close(month)
    with pytest.raises(Conflict, match="not posted"):
        await close_month(books.statements, Waits(), books.tenant_id, checked_month("2026-08"))
    with pytest.raises(NotFound):
        await close_month(books.statements, NothingWaits(), "nobody", checked_month("2026-08"))


async def test_numbers_have_no_gaps_whoever_fails(books: Books, admin: asyncpg.Connection) -> None:
    await books.close("2026-08")
    before = await admin.fetchval("SELECT max(sequence) FROM statements")
    for _ in range(3):
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute(
            "INSERT INTO statements (entity_id, kind, tenant_id, period_start, cut_at,"
            " closing_nanos, content) VALUES ('default', 'statement', $1, '2026-09-01', now(), 0,"
            " '{}')",
            books.tenant_id,
        )
        await transaction.rollback()
    await books.close("2026-09")

    numbers = await admin.fetch("SELECT sequence FROM statements WHERE entity_id = 'default'")
    assert sorted(row["sequence"] for row in numbers) == list(range(1, before + 2))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE statements SET content = '{}'",
        "DELETE FROM statements",
        "TRUNCATE statements CASCADE",
        "UPDATE legal_entities SET number_prefix = 'X'",
        "DELETE FROM legal_entities",
    ],
)
async def test_what_was_issued_cannot_be_changed(
    as_service: asyncpg.Connection, change: str
) -> None:
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.RaiseError)):
        await as_service.execute(change)


async def test_nothing_can_be_posted_before_a_cut_that_was_made(
    books: Books, admin: asyncpg.Connection, as_service: asyncpg.Connection
) -> None:
    transaction = as_service.transaction()
    await transaction.start()
    await as_service.execute("SELECT 1")
    cut_at = await books.statements.cut()
    transfer_id = uuid4()
    await as_service.execute(
        "INSERT INTO transfers (transfer_id, kind, idempotency_key) VALUES ($1, 'correction', $2)",
        transfer_id,
        f"test:{transfer_id}",
    )
    await transaction.commit()

    query = "SELECT posted_at FROM transfers WHERE transfer_id = $1"
    assert await admin.fetchval(query, transfer_id) > cut_at
    assert timedelta() < datetime.now(UTC) - cut_at < timedelta(minutes=1)


async def test_a_month_is_closed_read_and_corrected_over_http(
    billing: Service, books: Books
) -> None:
    await books.move("top_up", 10**6, at(8, 15), "wire 7")
    await books.charge(at(8, 20), at(8, 20))
    path = f"/tenants/{books.tenant_id}/statements"
    first = await billing.call("POST", path, json={"month": "2026-08"})
    again = await billing.call("POST", path, json={"month": "2026-08"})
    number = first.json()["number"]
    body = {"amount_nanos": 5, "reason": "slow", "reference": "t 1"}
    notes = [
        await billing.call("POST", f"/statements/{number}/credit-notes", json=body)
        for _ in range(2)
    ]

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == await billing.json("GET", f"/statements/{number}")
    lines = first.json()["lines"]
    assert sum(line["amount_nanos"] for line in lines) == first.json()["closing_nanos"]
    assert [note.status_code for note in notes] == [201, 200]
    listed = await billing.json("GET", "/statements", params={"tenant_id": books.tenant_id})
    assert [one["number"] for one in listed["items"]] == [notes[0].json()["number"], number]
    assert listed["items"][0]["corrects"] == number
    for form, begins in [
        ("html", b"<!doctype"),
        ("pdf", b"%PDF"),
        ("csv", b"document,"),
        ("focus", b"BilledCost,"),
    ]:
        for one in (number, notes[0].json()["number"]):
            answer = await billing.call(
                "GET", f"/statements/{one}/document", params={"format": form}
            )
            assert answer.status_code == 200
            assert answer.content.startswith(begins)


async def test_what_statements_refuse_over_http(billing: Service, tenant: str) -> None:
    month = {"month": f"{datetime.now(UTC):%Y-%m}"}
    body = {"amount_nanos": 5, "reason": "slow", "reference": "t 1"}
    for method, path, options, status in [
        ("POST", f"/tenants/{tenant}/statements", {"json": month}, 409),
        ("POST", f"/tenants/{tenant}/statements", {"json": {"month": "2026-13"}}, 422),
        ("POST", f"/tenants/{tenant}/statements", {"json": {"month": "2026-10"}}, 422),
        ("POST", "/tenants/nobody/statements", {"json": month}, 404),
        ("POST", "/tenants/%00/statements", {"json": month}, 404),
        ("GET", "/statements/BB-999999", {}, 404),
        ("GET", "/statements/%00", {}, 404),
        ("GET", "/statements/'; DROP TABLE statements/document?format=pdf", {}, 404),
        ("GET", "/statements/BB-999999/document?format=exe", {}, 422),
        ("POST", "/statements/BB-999999/credit-notes", {"json": body}, 404),
        ("POST", "/statements/BB-1/credit-notes", {"json": {**body, "amount_nanos": -5}}, 422),
        ("POST", "/statements/BB-1/credit-notes", {"json": {**body, "reason": "a\u202eb"}}, 422),
    ]:
        answer = await billing.call(method, path, **options)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["error"]["message"]


async def test_a_close_waits_for_usage_that_is_on_its_way(
    billing: Service, gateway: Gateway, books: Books
) -> None:
    before = datetime(2026, 8, 20, tzinfo=UTC)
    for _ in range(20):
        record = gateway.record(books.tenant_id, admitted_unix_ns=int(before.timestamp()) * 10**9)
        await gateway.publish(record)
    path = f"/tenants/{books.tenant_id}/statements"
    closed = await billing.json("POST", path, json={"month": "2026-08"})

    assert closed["requests"] == 20
    assert closed["charged_nanos"] == 20 * 100_000
