"""What statements count as charged, and that it is given back once."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest
from billing_parts import WARRANT_KEY, WARRANTS, Service
from busbar_billing.adapters.documents.focus import render_focus
from busbar_billing.adapters.documents.html import render_html
from busbar_billing.adapters.postgres.audit_statements import AuditedStatements
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.posting import Ledger
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain import ledger
from busbar_billing.domain.audit.statements import KeptStatement, check_statement
from busbar_billing.domain.leases import Funding
from busbar_billing.domain.ledger import AccountKind, TransferKind
from busbar_billing.domain.rating import Rating
from busbar_billing.domain.statement_content import write_content
from busbar_billing.domain.statements import (
    Facts,
    Month,
    Movement,
    Party,
    Section,
    Tax,
    close,
    contained_tax,
)
from busbar_billing.domain.usage import UsageVoid
from busbar_billing.usecases.audit_work import TenantMonth
from busbar_billing.usecases.post_usage import post_usage
from busbar_errors import Conflict, Rejected
from past_books import Books, at
from uuid_utils.compat import uuid7

CREDIT = 10**6
MONTH = Month(date(2026, 9, 1))
VAT = Tax("VAT", 190_000)


async def test_what_is_paid_corrected_or_returned_is_neither_charged_nor_taxed_nor_credited(
    books: Books,
) -> None:
    clearing = "payments_clearing"
    await books.owner.execute(
        "INSERT INTO legal_entities (entity_id, name, number_prefix, tax_name, tax_ppm)"
        " VALUES ('taxed', 'Taxed Ltd', 'TX', 'VAT', 190000) ON CONFLICT DO NOTHING"
    )
    await books.owner.execute(
        "INSERT INTO billing_details (tenant_id, entity_id, name) VALUES ($1, 'taxed', 'Acme')",
        books.tenant_id,
    )
    await books.move("top_up", 10**12, at(8, 15), "typo", against=clearing)
    await books.move("correction", -(10**12), at(8, 15), "undone", against=clearing)
    await books.move("correction", -700, at(8, 15), "undone")  # of a refund: charged again
    await books.owner.execute(
        "INSERT INTO accounts (kind, currency) VALUES ('promotional_credit', 'USD')"
        " ON CONFLICT DO NOTHING"
    )
    await books.move(
        "promotional_withdrawal", -900, at(8, 16), "typo", against="promotional_credit"
    )
    await books.move("payment_returned", -(10**10), at(8, 16), "stripe:pi_1", against=clearing)
    await books.charge(at(8, 20), at(8, 20), tokens=43)
    closed = await books.close("2026-08")
    made = closed.statement

    assert made.taxable_nanos == 4_300 + 700
    assert made.tax_nanos == contained_tax(5_000, VAT)
    assert made.total(Section.PAYMENTS) == -(10**10)
    assert made.total(Section.ADJUSTMENTS) == -700
    [withdrawn] = [line for line in made.lines if line.section is Section.CREDITS]
    assert (withdrawn.text, withdrawn.amount_nanos) == ("Promotional credit withdrawn: typo", -900)
    billed = csv.DictReader(io.StringIO(render_focus(closed).decode()))
    assert sum(Decimal(row["BilledCost"]) for row in billed) == Decimal("0.000005")
    assert "Payments received and returned" in render_html(closed).decode()
    with pytest.raises(Conflict, match="too much"):
        await books.statements.credit(closed.number, 4_301, "slow", "t 1", uuid7())
    audited = AuditedStatements(books.pool, Prices(books.pool, WARRANTS), WARRANT_KEY)
    piece = await audited.statements(TenantMonth(books.tenant_id, date(2026, 7, 1)), 1)
    assert [check_statement(*row) for row in piece.rows] == [[]]


def test_a_statement_is_counted_again_by_the_rules_that_it_was_closed_by() -> None:
    day = date(2026, 9, 3)
    moved = [
        Movement(TransferKind.TOP_UP, day, "typo", 1_000),
        Movement(TransferKind.CORRECTION, day, "undone", -1_000, of_payment=True),
        Movement(TransferKind.CORRECTION, day, "undone", -5),
    ]
    facts = Facts(MONTH, "USD", 0, moved, [], [], -5)
    said = close(facts, VAT, rules=1)
    party = Party("acme", "Acme")
    content = json.loads(json.dumps(write_content(said, party, party)))
    kept = KeptStatement("BB-000001", MONTH, -5, content)

    assert [(line.section, line.amount_nanos) for line in said.lines] == [
        (Section.PAYMENTS, 1_000),
        (Section.ADJUSTMENTS, -1_005),
    ]
    assert content["version"] == 1
    assert check_statement(kept, facts) == []
    assert check_statement(replace(kept, content={**content, "version": 2}), facts)
    assert check_statement(replace(kept, content={**content, "version": 3}), facts)


async def test_a_credit_note_corrects_and_never_gives_back_more_than_was_charged(
    books: Books, admin: asyncpg.Connection
) -> None:
    await books.move("top_up", 10**6, at(8, 15))
    await books.charge(at(8, 20), at(8, 20))
    closed = await books.close("2026-08")
    credit = books.statements.credit

    notes = await asyncio.gather(
        *(credit(closed.number, 60_000, "slow", "ticket 1", uuid7()) for _ in range(4))
    )
    with pytest.raises(Conflict, match="another amount"):
        await credit(closed.number, 1, "slow", "ticket 1", uuid7())
    with pytest.raises(Conflict, match="too much"):
        await credit(closed.number, 40_001, "slow", "ticket 2", uuid7())
    with pytest.raises(Rejected):
        await credit(closed.number, 0, "slow", "ticket 3", uuid7())
    with pytest.raises(Conflict, match="is a credit note"):
        await credit(notes[0].number, 1, "slow", "ticket 4", uuid7())

    assert len({note.number for note in notes}) == 1
    assert notes[0].corrects == closed.number
    assert notes[0].credited_nanos == 60_000
    balance = await admin.fetchval(
        "SELECT balance_nanos FROM account_balances JOIN accounts USING (account_id)"
        " WHERE tenant_id = $1 AND kind = 'tenant_available'",
        books.tenant_id,
    )
    assert balance == 10**6 - 100_000 + 60_000


@pytest.mark.parametrize("first", ["note", "refund"])
async def test_credit_notes_and_refunds_together_give_back_what_was_charged_and_no_more(
    billing: Service, books: Books, first: str
) -> None:
    """Over three months: charged in August, the rest elsewhere must not pay for it."""
    await books.move("top_up", 10**6, at(8, 15))
    some, other = [await books.charge(at(8, 20), at(8, 20)) for _ in range(2)]
    await books.post("refund", 30_000, at(8, 21), other, "on the same statement")
    await books.charge(at(9, 3), at(9, 3))
    closed = await books.close("2026-08")
    await books.post("refund", 10_000, at(9, 21), other, "on the next one")
    await books.close("2026-09")

    async def note(amount_nanos: int) -> bool:
        body = {"amount_nanos": amount_nanos, "reason": "slow", "reference": uuid4().hex}
        path = f"/statements/{closed.number}/credit-notes"
        answer = await billing.call("POST", path, json=body)
        assert answer.status_code in {201, 409}, answer.text
        return answer.status_code == 201

    async def refund(request: UUID, amount_nanos: int) -> bool:
        body = {"amount_nanos": amount_nanos, "reason": "slow", "reference": uuid4().hex}
        answer = await billing.call("POST", f"/usage/req_{request.hex}/refunds", json=body)
        assert answer.status_code in {201, 422}, answer.text
        return answer.status_code == 201

    if first == "note":
        assert not await note(160_001)
        assert await note(100_000)
        assert not await refund(some, 60_001)
        assert await refund(some, 50_000)
        assert not await note(10_001)
        given = await asyncio.gather(*(note(4_000) for _ in range(3)), refund(other, 4_000))
        given += await asyncio.gather(*(refund(some, 4_000) for _ in range(2)))
        assert sum(given) == 2
        assert await refund(some, 2_000) is True
    else:
        assert await refund(some, 100_000)
        assert not await note(60_001)
        assert await note(50_000)
        assert not await refund(other, 10_001)
        assert await refund(other, 10_000)

    assert not await note(1)
    assert not await refund(other, 1)
    assert await billing.balance(books.tenant_id) == 10**6 - 100_000


async def with_credit(billing: Service, books: Books, request_id: UUID, spent: int) -> str:
    """A promotional credit of which a request spent so much."""
    wanted = {
        "amount_nanos": CREDIT,
        "currency": "USD",
        "reference": "welcome",
        "expires_at": "2099-01-01T00:00:00Z",
    }
    given = await billing.json("POST", f"/tenants/{books.tenant_id}/credits", json=wanted)
    await books.owner.execute(
        "INSERT INTO promotional_spending SELECT transfer_id, $2, request_id, $3"
        " FROM usage_records WHERE request_id = $1",
        request_id, UUID(given["transfer_id"]), spent,
    )  # fmt: skip
    return given["transfer_id"]


@pytest.mark.parametrize(
    ("noted", "refunded", "returned", "promotional"),
    [
        (0, 0, 60_000, 60_000),
        (30_000, 0, 90_000, 60_000),
        (60_000, 0, 100_000, 60_000),
        (60_000, 0, 100_000, 20_000),
        (100_000, 0, 100_000, 60_000),
        (80_000, 20_000, 100_000, 60_000),
        (80_000, 20_000, 100_000, 20_000),
    ],
)
async def test_a_charge_taken_back_after_a_credit_note_gives_back_what_that_did_not(
    billing: Service, books: Books, *, noted: int, refunded: int, returned: int, promotional: int
) -> None:
    """60,000 and 40,000 were charged in August; the 60,000, some of them paid by promotional
    credit, were never delivered."""
    await books.move("top_up", 10**6, at(8, 15))
    undelivered = await books.charge(at(8, 20), at(8, 20), tokens=600)
    credit_id = await with_credit(billing, books, undelivered, promotional)
    await books.charge(at(8, 20), at(8, 20), tokens=400)
    closed = await books.close("2026-08")
    wanted = {"reason": "slow", "reference": uuid4().hex}
    if refunded:
        await billing.json(
            "POST",
            f"/usage/req_{undelivered.hex}/refunds",
            json={**wanted, "amount_nanos": refunded},
        )
    if noted:
        await billing.json(
            "POST",
            f"/statements/{closed.number}/credit-notes",
            json={**wanted, "amount_nanos": noted},
        )
    posting = Ledger(books.pool, Journal(books.pool, WARRANTS), Prices(books.pool, WARRANTS))
    void = UsageVoid(undelivered, books.tenant_id, "not delivered")
    for _ in range(2):
        await post_usage(posting, [], [void], uuid7)
    balance = await billing.balance(books.tenant_id)
    later = {**wanted, "amount_nanos": 1, "reference": uuid4().hex}
    path = f"/statements/{closed.number}/credit-notes"
    one_more = await billing.call("POST", path, json=later)

    kept = 60_000 + noted - returned
    [credit] = (await billing.json("GET", f"/tenants/{books.tenant_id}/credits"))["items"]
    assert credit["credit_id"] == credit_id
    assert credit["unspent_nanos"] == CREDIT - promotional + min(promotional, 60_000 - kept)
    assert balance == 10**6 + CREDIT - 100_000 + returned
    assert one_more.status_code == (201 if returned < 100_000 else 409)
    transfers = await billing.transfers(tenant_id=books.tenant_id)
    corrected = [one for one in transfers if f"note on {closed.number} gave" in one["reason"]]
    assert (
        sum(
            line["amount_nanos"]
            for one in corrected
            for line in one["postings"]
            if line["tenant_id"]
        )
        == returned - 60_000 - noted
    )


def test_of_a_void_that_a_credit_note_gave_the_balance_is_taken_before_what_was_owed() -> None:
    rating = Rating(1, "chat-small", "USD", 60, 60)
    charged = ledger.charge(uuid4(), uuid4(), "acme", rating, Funding(30, 20, 10))
    void = ledger.void(uuid4(), charged, "not delivered", lease_open=False)
    taken = ledger.already_noted(uuid4(), void, 55, "BB-000001")

    assert [(line.account.kind, line.amount_nanos) for line in taken.postings] == [
        (AccountKind.TENANT_AVAILABLE, -30),
        (AccountKind.TENANT_AVAILABLE, -20),
        (AccountKind.TENANT_RECEIVABLE, -5),
        (AccountKind.REVENUE, 55),
    ]
    assert (taken.request_id, taken.kind) == (charged.request_id, TransferKind.CORRECTION)
