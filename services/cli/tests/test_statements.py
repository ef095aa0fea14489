"""Statements and credit notes as people read them."""

from __future__ import annotations

import pytest
from busbar_cli.amounts import show_quantity
from busbar_cli.api import Json
from busbar_cli.commands.statements import credit_note_rows, said_of_note, statement_rows

GAVE = "BB-000002  gave $0.001 of BB-000001 back at 2026-11-22 03:00:00 already"
LINE: Json = {"section": "usage", "model": "simple", "day": None, "amount_nanos": -12_851_785}
STATEMENT: Json = {
    "currency": "USD",
    "month": "2026-10",
    "corrects": None,
    "reason": "",
    "opening_nanos": 5_000_000_000,
    "closing_nanos": 4_987_148_215,
}


@pytest.mark.parametrize(
    ("component", "counted", "shown"),
    [
        ("compute_second", 12_851_785, "12.851785"),
        ("compute_second", 3_600_000_000, "3,600"),
        ("megabyte", 170_478, "0.170478"),
        ("megabyte", 0, "0"),
        ("input_token", 1_250_000, "1,250,000"),
        ("request", 1, "1"),
    ],
)
def test_quantities_are_in_the_unit_that_they_are_named_after(
    component: str, counted: int, shown: str
) -> None:
    assert show_quantity(counted, component) == shown


def test_a_statement_shows_seconds_of_compute_as_seconds() -> None:
    line = {"text": "compute second", "component": "compute_second", "quantity": 12_851_785}
    rounding = {"text": "rounding of 3 requests", "component": None, "quantity": None}
    rows = statement_rows({**STATEMENT, "lines": [{**LINE, **line}, {**LINE, **rounding}]})

    assert rows == [
        ["opening balance", "", "", "$5.00"],
        ["usage", "simple  compute second", "12.851785", "-$0.012851785"],
        ["usage", "simple  rounding of 3 requests", "", "-$0.012851785"],
        ["closing balance", "", "", "$4.987148215"],
    ]


def test_a_credit_note_shows_what_it_gives_back_and_why() -> None:
    told = {"corrects": "BB-000001", "credited_nanos": 1_000_000, "reason": "slow answers"}

    assert credit_note_rows({**STATEMENT, **told}) == [
        ["given back", "of statement BB-000001 of 2026-10: slow answers", "", "$0.001"]
    ]


@pytest.mark.parametrize(
    ("reason", "repeated", "said"),
    [
        ("slow", False, "BB-000002  gives $0.001 of BB-000001 back"),
        ("slow", True, f"{GAVE}: nothing changed"),
        ("late", True, f"{GAVE}, for the reason 'slow', which stays: nothing changed"),
    ],
)
def test_a_credit_note_that_is_asked_for_again_is_said_to_be_there(
    reason: str, said: str, *, repeated: bool
) -> None:
    note = {
        **STATEMENT,
        "number": "BB-000002",
        "corrects": "BB-000001",
        "credited_nanos": 1_000_000,
        "reason": "slow",
        "issued_at": "2026-11-22T03:00:00Z",
    }

    assert said_of_note(note, reason=reason, repeated=repeated) == said
