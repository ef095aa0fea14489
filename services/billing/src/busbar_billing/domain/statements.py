"""The monthly close: from what the journal holds of a month to the statement that says so.

Charges belong to the month in which their request was admitted, everything
else to the month in which it was posted. What is posted after its month was
closed stands on the next statement, so that statements never change and their
lines always sum to the change of the balance.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum

from busbar_errors import Conflict, Rejected

from busbar_billing.domain.ledger import TransferKind
from busbar_billing.domain.money import round_half_even, say_amount
from busbar_billing.domain.prices import Component
from busbar_billing.domain.rating import SCALE

_MONTH = re.compile(r"(20[2-9]\d)-(0[1-9]|1[0-2])")
PPM = 1_000_000
RULES = 2
"""Of the close, as they are now. By the first, money that went back to a payer stood among the
adjustments, as if it had been charged; statements of then are counted again as they were made."""
_FIRST_RULES = 1


class Section(StrEnum):
    """Parts of a statement, in their order."""

    PAYMENTS = "payments"
    CREDITS = "credits"
    USAGE = "usage"
    LATE_USAGE = "late_usage"
    ADJUSTMENTS = "adjustments"


CHARGING = frozenset({Section.USAGE, Section.LATE_USAGE, Section.ADJUSTMENTS})
"""What tax is contained in: what was used, less what was given back."""
USED = frozenset({Section.USAGE, Section.LATE_USAGE})

_SECTION_OF = {
    TransferKind.TOP_UP: Section.PAYMENTS,
    TransferKind.PAYMENT_RETURNED: Section.PAYMENTS,
    TransferKind.PROMOTIONAL_CREDIT: Section.CREDITS,
    TransferKind.PROMOTIONAL_EXPIRY: Section.CREDITS,
    TransferKind.PROMOTIONAL_WITHDRAWAL: Section.CREDITS,
    TransferKind.REFUND: Section.ADJUSTMENTS,
    TransferKind.VOID: Section.ADJUSTMENTS,
    TransferKind.CORRECTION: Section.ADJUSTMENTS,
}
"""Anything else moves money between a tenant's own accounts, which comes to nothing."""
_TEXT_OF = {
    TransferKind.TOP_UP: "Payment",
    TransferKind.PAYMENT_RETURNED: "Payment returned",
    TransferKind.PROMOTIONAL_CREDIT: "Promotional credit",
    TransferKind.PROMOTIONAL_EXPIRY: "Promotional credit expired",
    TransferKind.PROMOTIONAL_WITHDRAWAL: "Promotional credit withdrawn",
    TransferKind.REFUND: "Refund",
    TransferKind.CORRECTION: "Correction",
    TransferKind.VOID: "Charges of earlier months taken back",
}


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month in UTC."""

    first_day: date

    @property
    def starts_at(self) -> datetime:
        """Its first moment."""
        return datetime(self.first_day.year, self.first_day.month, 1, tzinfo=UTC)

    @property
    def ends_at(self) -> datetime:
        """The first moment after it."""
        return self.following.starts_at

    @property
    def following(self) -> Month:
        """The month after it."""
        year, month = divmod(self.first_day.year * 12 + self.first_day.month, 12)
        return Month(date(year, month + 1, 1))

    def __str__(self) -> str:
        return f"{self.first_day:%Y-%m}"


def month_of(moment: datetime) -> Month:
    """The month in which a moment lies."""
    return Month(moment.astimezone(UTC).date().replace(day=1))


def checked_month(text: str) -> Month:
    """Read "2026-10"; raise Rejected when it is no month."""
    matched = _MONTH.fullmatch(text)
    if matched is None:
        raise Rejected(f"{text[:20]!r} is not a month: write 2026-10")
    return Month(date(int(matched[1]), int(matched[2]), 1))


@dataclass(frozen=True, slots=True)
class Party:
    """Who issues a statement or to whom it is addressed."""

    party_id: str
    name: str
    address: tuple[str, ...] = ()
    tax_id: str = ""


@dataclass(frozen=True, slots=True)
class Tax:
    """The tax that charges contain: `ppm` millionths of the net amount. Nothing when 0."""

    name: str = ""
    ppm: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Movement:
    """Transfers of one kind and reason on one day, and what they did to the balance. `of_payment`:
    corrections of top-ups, not of what was charged or given back."""

    kind: TransferKind
    day: date
    reason: str
    amount_nanos: int
    count: int = 1
    of_payment: bool = False


@dataclass(frozen=True, slots=True)
class Charged:
    """What was taken for a model's requests. `late`: admitted before the period began."""

    model: str
    late: bool
    requests: int
    amount_nanos: int


@dataclass(frozen=True, slots=True)
class Used:
    """How much of a component a model's requests used at one price, counted as in usage records."""

    model: str
    late: bool
    component: Component
    quantity: int
    price_nanos: int
    per_units: int

    @property
    def exact(self) -> int:
        """What it costs, in nanos over rating's SCALE."""
        divisor = self.per_units * self.component.units_per_quantity
        return self.quantity * self.price_nanos * (SCALE // divisor)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a statement is made of. `journal_closing_nanos` is the closing balance as the
    projected balances say it, found in another way than by adding up the lines."""

    month: Month
    currency: str
    opening_nanos: int
    movements: Sequence[Movement]
    charged: Sequence[Charged]
    used: Sequence[Used]
    journal_closing_nanos: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line. Usage has a model; all of it but rounding also a component, a quantity (counted as
    in usage records) and a price."""

    section: Section
    text: str
    amount_nanos: int
    day: date | None = None
    model: str | None = None
    component: Component | None = None
    quantity: int | None = None
    price_nanos: int | None = None
    per_units: int | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """A closed month. `taxable_nanos` is what was charged, of which `tax_nanos` are tax; `rules`
    are those that it was closed by."""

    month: Month
    currency: str
    opening_nanos: int
    closing_nanos: int
    lines: tuple[Line, ...]
    requests: int
    tax: Tax
    taxable_nanos: int
    tax_nanos: int
    rules: int = RULES

    def total(self, section: Section) -> int:
        """What a section does to the balance."""
        return sum(line.amount_nanos for line in self.lines if line.section is section)

    @property
    def used_nanos(self) -> int:
        """What the requests on it cost, before anything was given back."""
        return -sum(self.total(section) for section in USED)


def close(facts: Facts, tax: Tax, rules: int = RULES) -> Statement:
    """The statement of a month; raise Conflict when the journal and the balances disagree."""
    if rules not in {_FIRST_RULES, RULES}:
        raise Rejected(f"there are no rules {rules!r} to close a month by")
    lines = (
        *_movement_lines(facts.movements, rules),
        *_usage_lines(facts.charged, facts.used),
    )
    order = list(Section)
    lines = tuple(sorted(lines, key=lambda line: order.index(line.section)))
    closing = facts.opening_nanos + sum(line.amount_nanos for line in lines)
    if closing != facts.journal_closing_nanos:
        raise Conflict(
            f"the journal of {facts.month} adds up to {closing} nanos but the balances say "
            f"{facts.journal_closing_nanos}: run the auditor before closing"
        )
    taxable = -sum(line.amount_nanos for line in lines if line.section in CHARGING)
    return Statement(
        month=facts.month,
        currency=facts.currency,
        opening_nanos=facts.opening_nanos,
        closing_nanos=closing,
        lines=lines,
        requests=sum(one.requests for one in facts.charged),
        tax=tax,
        taxable_nanos=taxable,
        tax_nanos=contained_tax(taxable, tax),
        rules=rules,
    )


def contained_tax(gross_nanos: int, tax: Tax) -> int:
    """The tax in an amount that contains it, rounded half-even to a nano."""
    return round_half_even(gross_nanos * tax.ppm, PPM + tax.ppm)


def _section_of(movement: Movement, rules: int) -> Section:
    section = _SECTION_OF.get(movement.kind, Section.PAYMENTS)
    if movement.of_payment:
        section = Section.PAYMENTS
    if rules == _FIRST_RULES and movement.kind in _MISPLACED_AT_FIRST:
        section = Section.ADJUSTMENTS
    return section


_MISPLACED_AT_FIRST = frozenset({TransferKind.PAYMENT_RETURNED, TransferKind.CORRECTION})


def _merged(movements: Iterable[Movement]) -> list[Movement]:
    """As the first rules told them: corrections of one day and reason together, whatever of."""
    merged: dict[tuple[TransferKind, date, str], Movement] = {}
    for one in movements:
        key = (one.kind, one.day, one.reason)
        before = merged.get(key)
        amount = one.amount_nanos + (before.amount_nanos if before else 0)
        count = one.count + (before.count if before else 0)
        merged[key] = Movement(*key, amount, count)
    return list(merged.values())


def _movement_lines(movements: Iterable[Movement], rules: int) -> Iterable[Line]:
    for one in _merged(movements) if rules == _FIRST_RULES else movements:
        text = _TEXT_OF.get(one.kind, one.kind.value.replace("_", " ").capitalize())
        text = "Payment corrected" if one.of_payment else text
        count = f" ({one.count} times)" if one.count > 1 else ""
        yield Line(
            section=_section_of(one, rules),
            text=f"{text}: {one.reason}{count}" if one.reason else f"{text}{count}",
            amount_nanos=one.amount_nanos,
            day=one.day,
        )


@dataclass(slots=True)
class _Model:
    requests: int = 0
    amount_nanos: int = 0
    used: defaultdict[tuple[Component, int, int], int] = field(
        default_factory=lambda: defaultdict(int)
    )


def _usage_lines(charged: Iterable[Charged], used: Iterable[Used]) -> Iterable[Line]:
    """By model and component; what rounding each charge took or gave is a line of its own."""
    models: defaultdict[tuple[bool, str], _Model] = defaultdict(_Model)
    for one in charged:
        entry = models[one.late, one.model]
        entry.requests += one.requests
        entry.amount_nanos += one.amount_nanos
    for one in used:
        key = (one.component, one.price_nanos, one.per_units)
        models[one.late, one.model].used[key] += one.quantity
    for (late, model), entry in sorted(models.items()):
        section = Section.LATE_USAGE if late else Section.USAGE
        left = entry.amount_nanos
        for (component, price_nanos, per_units), quantity in sorted(entry.used.items()):
            if quantity == 0:
                continue
            exact = Used(model, late, component, quantity, price_nanos, per_units).exact
            amount = -round_half_even(exact, SCALE)
            left -= amount
            yield Line(
                section=section,
                text=component.value.replace("_", " "),
                amount_nanos=amount,
                model=model,
                component=component,
                quantity=quantity,
                price_nanos=price_nanos,
                per_units=per_units,
            )
        if left:
            text = f"rounding of {entry.requests:,} requests"
            yield Line(section=section, text=text, amount_nanos=left, model=model)


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What came back of the charges on a statement, on whatever statement it stands itself."""

    used_nanos: int
    """What the requests on the statement cost."""
    noted_nanos: int
    """By credit notes on it."""
    single_nanos: int
    """By refunds and voids of single charges, less what was taken back of them."""

    @property
    def left_nanos(self) -> int:
        """What may still be given back."""
        return max(0, self.used_nanos - self.noted_nanos - self.single_nanos)

    @property
    def beyond_nanos(self) -> int:
        """What came back though it was not charged."""
        return max(0, self.noted_nanos + self.single_nanos - self.used_nanos)


def checked_credit(given: GivenBack, amount_nanos: int, currency: str) -> int:
    """Return an amount that a credit note may give back; raise Rejected or Conflict otherwise."""
    if amount_nanos <= 0:
        raise Rejected(f"a credit note gives money back: {amount_nanos} nanos is not positive")
    if amount_nanos > given.left_nanos:
        used, noted, single, left, wanted = (
            say_amount(one, currency)
            for one in (
                given.used_nanos,
                given.noted_nanos,
                given.single_nanos,
                given.left_nanos,
                amount_nanos,
            )
        )
        raise Conflict(
            f"the requests on the statement cost {used}, of which {noted} were given back by "
            f"credit notes and {single} by refunds of single requests: {left} are left, "
            f"{wanted} is too much"
        )
    return amount_nanos


def next_month_to_close(last_closed: Month | None, tenant_since: datetime) -> Month:
    """Months are closed one after another, from the one in which the tenant was made."""
    return month_of(tenant_since) if last_closed is None else last_closed.following
