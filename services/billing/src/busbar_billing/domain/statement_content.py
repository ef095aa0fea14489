"""A statement as the plain values that are kept of it, and back."""

from __future__ import annotations

from datetime import date
from typing import Any

from busbar_billing.domain.prices import Component
from busbar_billing.domain.statements import (
    Line,
    Party,
    Section,
    Statement,
    Tax,
    checked_month,
)


def write_content(statement: Statement, issuer: Party, customer: Party) -> dict[str, Any]:
    """What is kept: all that any rendering shows, so that none of them asks for more later."""
    return {
        "version": statement.rules,
        "month": str(statement.month),
        "currency": statement.currency,
        "opening_nanos": statement.opening_nanos,
        "closing_nanos": statement.closing_nanos,
        "requests": statement.requests,
        "taxable_nanos": statement.taxable_nanos,
        "tax_nanos": statement.tax_nanos,
        "tax": {
            "name": statement.tax.name,
            "ppm": statement.tax.ppm,
            "note": statement.tax.note,
        },
        "issuer": _write_party(issuer),
        "customer": _write_party(customer),
        "lines": [_write_line(line) for line in statement.lines],
    }


def read_content(content: dict[str, Any]) -> tuple[Statement, Party, Party]:
    """The statement, who issued it and for whom."""
    statement = Statement(
        month=checked_month(content["month"]),
        currency=content["currency"],
        opening_nanos=content["opening_nanos"],
        closing_nanos=content["closing_nanos"],
        lines=tuple(_read_line(line) for line in content["lines"]),
        requests=content["requests"],
        tax=Tax(**content["tax"]),
        taxable_nanos=content["taxable_nanos"],
        tax_nanos=content["tax_nanos"],
        rules=content["version"],
    )
    return statement, _read_party(content["issuer"]), _read_party(content["customer"])


def _write_party(party: Party) -> dict[str, Any]:
    return {
        "party_id": party.party_id,
        "name": party.name,
        "address": list(party.address),
        "tax_id": party.tax_id,
    }


def _read_party(kept: dict[str, Any]) -> Party:
    return Party(kept["party_id"], kept["name"], tuple(kept["address"]), kept["tax_id"])


def _write_line(line: Line) -> dict[str, Any]:
    return {
        "section": line.section.value,
        "text": line.text,
        "amount_nanos": line.amount_nanos,
        "day": None if line.day is None else line.day.isoformat(),
        "model": line.model,
        "component": None if line.component is None else line.component.value,
        "quantity": line.quantity,
        "price_nanos": line.price_nanos,
        "per_units": line.per_units,
    }


def _read_line(kept: dict[str, Any]) -> Line:
    return Line(
        section=Section(kept["section"]),
        text=kept["text"],
        amount_nanos=kept["amount_nanos"],
        day=None if kept["day"] is None else date.fromisoformat(kept["day"]),
        model=kept["model"],
        component=None if kept["component"] is None else Component(kept["component"]),
        quantity=kept["quantity"],
        price_nanos=kept["price_nanos"],
        per_units=kept["per_units"],
    )
