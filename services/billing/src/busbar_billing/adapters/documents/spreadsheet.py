"""A document as CSV (RFC 4180): a line of it a row, the balances first and last."""

from __future__ import annotations

import csv
import io

from busbar_billing.adapters.documents.layout import amount
from busbar_billing.domain.statements import Line
from busbar_billing.usecases.statements import Issued

COLUMNS = (
    "document", "account", "month", "section", "day", "model", "component", "text", "quantity",
    "quantity_per_unit", "price", "per_units", "amount", "amount_nanos", "currency",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render_csv(issued: Issued) -> bytes:
    """UTF-8. Quantities are as usage records count them, `quantity_per_unit` to a unit."""
    made = issued.statement
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    if issued.corrects is not None:
        said = f"{issued.corrects}: {issued.reason}"
        writer.writerow(_row(issued, "credit_note", said, issued.credited_nanos))
    else:
        writer.writerow(_row(issued, "opening_balance", "", made.opening_nanos))
        for line in made.lines:
            writer.writerow(_line(issued, line))
        writer.writerow(_row(issued, "closing_balance", "", made.closing_nanos))
        if made.tax.ppm:
            said = f"{made.tax.name} contained in charges"
            writer.writerow(_row(issued, "tax", said, made.tax_nanos))
    return text.getvalue().encode()


def safe_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _row(issued: Issued, section: str, text: str, nanos: int) -> list[object]:
    line = (section, "", "", "", safe_cell(text), "", "", "", "")
    return [*_head(issued), *line, *_money(issued, nanos)]


def _line(issued: Issued, line: Line) -> list[object]:
    component = line.component
    return [
        *_head(issued),
        line.section.value,
        line.day.isoformat() if line.day else "",
        safe_cell(line.model or ""),
        component.value if component else "",
        safe_cell(line.text),
        "" if line.quantity is None else line.quantity,
        component.units_per_quantity if component else "",
        "" if line.price_nanos is None else amount(line.price_nanos, grouping=""),
        "" if line.per_units is None else line.per_units,
        *_money(issued, line.amount_nanos),
    ]


def _head(issued: Issued) -> list[object]:
    return [issued.number, issued.customer.party_id, str(issued.statement.month)]


def _money(issued: Issued, nanos: int) -> list[object]:
    return [amount(nanos, grouping=""), nanos, issued.statement.currency]
