"""What every rendering of a document shows: texts, already formatted, in their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from busbar_billing.domain.prices import Component
from busbar_billing.domain.statements import Line, Party, Section, Statement
from busbar_billing.usecases.statements import Issued

_TITLES = {
    Section.PAYMENTS: "Payments received",
    Section.CREDITS: "Promotional credits",
    Section.USAGE: "Usage",
    Section.LATE_USAGE: "Usage of earlier months, posted later",
    Section.ADJUSTMENTS: "Refunds and corrections",
}
_UNITS = {
    Component.INPUT_TOKEN: "input tokens",
    Component.OUTPUT_TOKEN: "output tokens",
    Component.CACHED_TOKEN: "cached input tokens",
    Component.REQUEST: "requests",
    Component.COMPUTE_SECOND: "seconds of compute",
    Component.MEGABYTE: "megabytes",
}
_NANO_DIGITS, _DIGITS_MIN = 9, 2


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what, how much of it, at what price, for how much."""

    text: str
    quantity: str
    price: str
    amount: str


@dataclass(frozen=True, slots=True)
class Block:
    """The lines of a section and their sum."""

    title: str
    rows: tuple[Row, ...]
    total: str


@dataclass(frozen=True, slots=True)
class Document:
    """A statement or credit note, in texts. Blank `tax` and `tax_note` are not shown."""

    title: str
    number: str
    issuer: Party
    customer: Party
    facts: tuple[tuple[str, str], ...]
    opening: str
    blocks: tuple[Block, ...]
    closing: tuple[str, str]
    tax: str
    tax_note: str
    currency: str


def lay_out(issued: Issued) -> Document:
    """The texts of a document."""
    return _credit_note(issued) if issued.corrects else _statement(issued)


def _statement(issued: Issued) -> Document:
    made = issued.statement
    digits = digits_for(
        [made.opening_nanos, made.closing_nanos, *[line.amount_nanos for line in made.lines]]
    )
    last_day = made.month.ends_at - timedelta(days=1)
    return Document(
        title="Statement",
        number=issued.number,
        issuer=issued.issuer,
        customer=issued.customer,
        facts=(
            ("Number", issued.number),
            ("Period", f"{made.month.starts_at:%-d %B %Y} to {last_day:%-d %B %Y} (UTC)"),
            ("Issued", f"{issued.issued_at:%-d %B %Y}"),
            ("Account", issued.customer.party_id),
            ("Requests", f"{made.requests:,}"),
        ),
        opening=amount(made.opening_nanos, digits),
        blocks=tuple(_blocks(made, digits)),
        closing=("Closing balance", amount(made.closing_nanos, digits)),
        tax=_tax(made, digits),
        tax_note=made.tax.note,
        currency=made.currency,
    )


def _credit_note(issued: Issued) -> Document:
    made = issued.statement
    given = amount(issued.credited_nanos, digits_for([issued.credited_nanos]))
    row = Row(issued.reason, "", "", given)
    return Document(
        title="Credit note",
        number=issued.number,
        issuer=issued.issuer,
        customer=issued.customer,
        facts=(
            ("Number", issued.number),
            ("Corrects", f"statement {issued.corrects} of {made.month.starts_at:%B %Y}"),
            ("Issued", f"{issued.issued_at:%-d %B %Y}"),
            ("Account", issued.customer.party_id),
        ),
        opening="",
        blocks=(Block("Given back", (row,), given),),
        closing=("Added to the balance", given),
        tax="",
        tax_note=made.tax.note,
        currency=made.currency,
    )


def _blocks(made: Statement, digits: int) -> Iterable[Block]:
    for section in Section:
        rows = tuple(_row(line, digits) for line in made.lines if line.section is section)
        if rows:
            yield Block(_title(made, section), rows, amount(made.total(section), digits))


def _title(made: Statement, section: Section) -> str:
    lines = [line for line in made.lines if line.section is section]
    if section is Section.PAYMENTS and any(line.amount_nanos < 0 for line in lines):
        return "Payments received and returned"
    return _TITLES[section]


def _row(line: Line, digits: int) -> Row:
    shown = amount(line.amount_nanos, digits)
    if line.component is None or line.quantity is None or line.price_nanos is None:
        before = line.model or (f"{line.day:%-d %b}" if line.day else "")
        return Row(f"{before}  {line.text}".strip(), "", "", shown)
    price = amount(line.price_nanos, digits_for([line.price_nanos]))
    per_units = f" per {line.per_units:,}" if line.per_units != 1 else " each"
    return Row(
        f"{line.model}  {_UNITS[line.component]}",
        units(line.quantity, line.component),
        price + per_units,
        shown,
    )


def _tax(made: Statement, digits: int) -> str:
    if not made.tax.ppm:
        return ""
    rate = f"{made.tax.ppm / 10_000:.4f}".rstrip("0").rstrip(".")
    return (
        f"Charges of {amount(made.taxable_nanos, digits)} contain {rate} % {made.tax.name}: "
        f"{amount(made.tax_nanos, digits)}"
    )


def units(quantity: int, component: Component) -> str:
    """A quantity as usage records count it, in the component's unit, exactly."""
    whole, part = divmod(quantity, component.units_per_quantity)
    width = len(str(component.units_per_quantity)) - 1
    fraction = f"{part:0{width}d}".rstrip("0") if part else ""
    return f"{whole:,}.{fraction}" if fraction else f"{whole:,}"


def amount(nanos: int, digits: int = _NANO_DIGITS, grouping: str = ",") -> str:
    """An amount with so many decimals, which must be enough for it."""
    whole, part = divmod(abs(nanos), 10**_NANO_DIGITS)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole:{grouping}}.{part:09d}"[: -(_NANO_DIGITS - digits) or None]


def digits_for(amounts: Iterable[int]) -> int:
    """The fewest decimals, but two, that show all of the amounts exactly."""
    digits = _DIGITS_MIN
    for one in amounts:
        part = f"{abs(one) % 10**_NANO_DIGITS:09d}".rstrip("0")
        digits = max(digits, len(part))
    return digits
