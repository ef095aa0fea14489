"""What customers and their tools get: complete, exact, the same each time."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from busbar_billing.adapters.documents.focus import render_focus
from busbar_billing.adapters.documents.html import render_html
from busbar_billing.adapters.documents.layout import amount, digits_for, lay_out, units
from busbar_billing.adapters.documents.pdf import render_pdf
from busbar_billing.adapters.documents.spreadsheet import render_csv
from busbar_billing.domain.ledger import TransferKind
from busbar_billing.domain.prices import Component
from busbar_billing.domain.statements import (
    CHARGING,
    Movement,
    Party,
    Tax,
    close,
)
from busbar_billing.usecases.statements import Issued
from hypothesis import given
from hypothesis import strategies as st
from issued import DAY, FACTS, ISSUED, NOTE


class Text(HTMLParser):
    """The text of a page, and the tags that load something."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.said: list[str] = []
        self.loads: list[str] = []
        self.feed(page.decode())

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [tag for name, _ in attrs if name in {"src", "href"}]


@pytest.mark.parametrize("issued", [ISSUED, NOTE], ids=["statement", "credit note"])
def test_a_page_shows_all_of_the_document_and_loads_nothing(issued: Issued) -> None:
    page = Text(render_html(issued))
    said = "".join(page.said)
    document = lay_out(issued)

    assert not page.loads
    assert ISSUED.customer.name in said
    for block in document.blocks:
        for row in block.rows:
            assert row.text in said
            assert row.amount in said
    assert document.closing[1] in said


@pytest.mark.parametrize("issued", [ISSUED, NOTE], ids=["statement", "credit note"])
def test_a_pdf_has_its_fonts_inside_and_the_same_bytes_each_time(issued: Issued) -> None:
    first, second = render_pdf(issued), render_pdf(issued)

    assert first == second
    assert first.startswith(b"%PDF-")
    assert b"/FontFile2" in first
    assert b"Roboto" in first


def test_letters_that_the_font_lacks_do_not_vanish() -> None:
    lacking, said, without = (
        render_pdf(replace(ISSUED, customer=Party("a", name)))
        for name in ("\u6771 Ltd", "\ufffd Ltd", " Ltd")
    )

    assert lacking == said != without


def test_many_lines_go_on_more_pages() -> None:
    moved = [Movement(TransferKind.TOP_UP, DAY, f"wire {n}", 1) for n in range(200)]
    made = close(replace(FACTS, movements=moved, charged=[], used=[], opening_nanos=0,
                         journal_closing_nanos=200), Tax())  # fmt: skip

    assert render_pdf(replace(ISSUED, statement=made)).count(b"/Type /Page\n") > 3


def rows_of(rendered: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(rendered.decode())))


def test_the_spreadsheet_adds_up_and_holds_no_formula() -> None:
    rows = rows_of(render_csv(ISSUED))
    opening, *lines, closing, tax = rows
    total = sum(int(row["amount_nanos"]) for row in lines)

    assert int(opening["amount_nanos"]) + total == int(closing["amount_nanos"]) == 29_128_998_677
    assert int(tax["amount_nanos"]) == ISSUED.statement.tax_nanos
    assert [row["section"] for row in rows_of(render_csv(NOTE))] == ["credit_note"]
    for row in rows:
        assert Decimal(row["amount"]) * 10**9 == int(row["amount_nanos"])
        assert not row["text"].startswith(("=", "+", "-", "@"))


def test_focus_bills_nothing_of_a_statement_again_with_its_credit_note() -> None:
    assert rows_of(render_focus(NOTE)) == []


def test_focus_bills_what_the_statement_charged() -> None:
    rows = rows_of(render_focus(ISSUED))
    charged = -sum(line.amount_nanos for line in ISSUED.statement.lines if line.section in CHARGING)

    assert sum(Decimal(row["BilledCost"]) for row in rows) * 10**9 == charged
    for row in rows:
        if row["ChargeCategory"] == "Usage":
            for kind in ("List", "Contracted"):
                price = Decimal(row[f"{kind}UnitPrice"]) * Decimal(row["PricingQuantity"])
                assert Decimal(row[f"{kind}Cost"]) == price


@given(st.lists(st.integers(-(10**18), 10**18), min_size=1))
def test_amounts_are_shown_exactly_with_as_few_decimals_as_that_takes(nanos: list[int]) -> None:
    digits = digits_for(nanos)

    assert 2 <= digits <= 9
    for one in nanos:
        assert Decimal(amount(one, digits, grouping="")) * 10**9 == one


@given(st.integers(0, 10**18), st.sampled_from(Component))
def test_quantities_are_shown_exactly(quantity: int, component: Component) -> None:
    shown = Decimal(units(quantity, component).replace(",", ""))

    assert shown * component.units_per_quantity == quantity
