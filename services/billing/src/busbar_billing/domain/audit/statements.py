"""Statements against the journal that they were made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from busbar_errors import BusbarError

from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.domain.statement_content import read_content
from busbar_billing.domain.statements import Facts, Line, Month, Statement, close

_SAID = ("opening_nanos", "closing_nanos", "requests", "taxable_nanos", "tax_nanos", "currency")


_NOT_AS_ISSUED = "is not as billing issued it: its warrant is of something else, or missing"


@dataclass(frozen=True, slots=True)
class KeptNote:
    """A credit note as it is kept: what it moved is checked with its number."""

    number: str
    vouched: bool
    """Whether billing issued it as it stands, or before it vouched for what it issues."""


def check_notes(notes: Iterable[KeptNote]) -> list[Breach]:
    """They say what they said when they were issued."""
    return [
        Breach(Check.STATEMENTS_RECOUNTED, f"statement {one.number}", _NOT_AS_ISSUED)
        for one in notes
        if not one.vouched
    ]


@dataclass(frozen=True, slots=True)
class KeptStatement:
    """A statement as it is kept."""

    number: str
    month: Month
    closing_nanos: int
    content: dict[str, Any]
    vouched: bool = True
    """Whether billing issued it as it stands, or before it vouched for what it issues."""


def check_statement(kept: KeptStatement, facts: Facts | None) -> list[Breach]:
    """It says what the journal comes to between its two moments, now as when it was issued. Words
    are not compared: a later release may choose others."""
    subject = f"statement {kept.number}"
    if facts is None:
        detail = "cannot be counted again: prices that it charged by are not in the book"
        return [Breach(Check.STATEMENTS_RECOUNTED, subject, detail)]
    try:
        said, _, _ = read_content(kept.content)
        again = close(facts, said.tax, said.rules)
    except (BusbarError, KeyError, TypeError, ValueError) as error:
        detail = f"cannot be read: {error!r}"[:200]
        return [Breach(Check.STATEMENTS_RECOUNTED, subject, detail)]
    details = _differences(kept, said, again)
    return [Breach(Check.STATEMENTS_RECOUNTED, subject, detail) for detail in details]


def _differences(kept: KeptStatement, said: Statement, again: Statement) -> Iterable[str]:
    if kept.closing_nanos != said.closing_nanos:
        yield f"closes with {said.closing_nanos} nanos and is kept with {kept.closing_nanos}"
    if kept.month != said.month:
        yield f"is of {said.month} and kept as of {kept.month}"
    if not kept.vouched:
        yield _NOT_AS_ISSUED
    for name in _SAID:
        one, other = getattr(said, name), getattr(again, name)
        if one != other:
            yield f"says {name} {one}; the journal comes to {other}"
    for line in _without(said.lines, again.lines):
        yield f"has a line that the journal does not: {_named(line)}"
    for line in _without(again.lines, said.lines):
        yield f"lacks a line that the journal has: {_named(line)}"


def _without(lines: Iterable[Line], others: Iterable[Line]) -> Iterable[Line]:
    def counted(found: Iterable[Line]) -> Counter[Line]:
        return Counter(replace(line, text="") for line in found)

    return (counted(lines) - counted(others)).elements()


def _named(line: Line) -> str:
    what = [line.section.value, str(line.day or ""), line.model or "", line.component or ""]
    quantity = "" if line.quantity is None else f" {line.quantity}"
    return f"{' '.join(filter(None, what))}{quantity} for {line.amount_nanos} nanos"
