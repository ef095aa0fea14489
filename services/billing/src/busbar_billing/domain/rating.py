"""What a request costs, line by line: quantities times prices, rounded once at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import NamedTuple

from busbar_errors import Rejected

from busbar_billing.domain.money import round_half_even
from busbar_billing.domain.prices import ClassPrices, Component, Price, PriceBook, Tier
from busbar_billing.domain.usage import UsageRecord

SCALE = 10**12
"""Exact amounts are integers over this: the largest `per_units` times the finest quantity."""
CHARGE_NANOS_MAX = 10**15
"""A million units of the currency: a single request that costs more is an error."""
NOTHING_BEFORE: Mapping[Component, int] = {}


@dataclass(frozen=True, slots=True)
class Line:
    """One component at one price: `quantity` counted as in the usage record (µs, bytes, tokens,
    requests), of which the tenant had used `before` in that month."""

    component: Component
    quantity: int
    price: Tier
    exact: int
    before: int = 0

    @property
    def exact_nanos(self) -> str:
        """The line's amount in nanos as an exact decimal, such as "1234.5"."""
        whole, fraction = divmod(self.exact, SCALE)
        return f"{whole}.{fraction:012d}".rstrip("0").rstrip(".")


class Rating(NamedTuple):
    """A rated record. `charge_nanos` is what the tenant pays, `earned_nanos` the exact amount
    rounded to nanos; the two differ by less than the book's quantum. `before` is what the tenant
    had used of each graduated component, without which the amount cannot be explained."""

    price_version: int
    rated_class: str
    currency: str
    charge_nanos: int
    earned_nanos: int
    before: Mapping[Component, int] = NOTHING_BEFORE


def rate(
    record: UsageRecord, book: PriceBook, before: Mapping[Component, int] = NOTHING_BEFORE
) -> Rating:
    """Rate `record` by `book`, after `before` was used in its month; raise Rejected when the amount
    is absurd.

    The exact sum is rounded half-even once per posting: to the book's quantum
    for the tenant, to a nano for revenue.
    """
    rated_class, prices = book.resolve(record.price_class)
    exact, seen = 0, dict[Component, int]()
    for component, price in prices.items():
        quantity = quantity_of(record, component, prices)
        if price.graduated:
            seen[component] = before.get(component, 0)
            steps = _graduated(component, quantity, price, seen[component])
            exact += sum(line.exact for line in steps)
        else:
            exact += _exact(component, quantity, price)
    charge_nanos = book.quantum_nanos * round_half_even(exact, SCALE * book.quantum_nanos)
    if charge_nanos > CHARGE_NANOS_MAX:
        raise Rejected(f"request would cost {charge_nanos} nanos: at most {CHARGE_NANOS_MAX}")
    return Rating(
        price_version=book.version,
        rated_class=rated_class,
        currency=book.currency,
        charge_nanos=charge_nanos,
        earned_nanos=round_half_even(exact, SCALE),
        before=seen,
    )


def explain(
    record: UsageRecord, prices: ClassPrices, before: Mapping[Component, int] = NOTHING_BEFORE
) -> list[Line]:
    """The lines behind a rating; their exact sum is what is rounded."""
    lines: list[Line] = []
    for component, price in prices.items():
        quantity = quantity_of(record, component, prices)
        if price.graduated:
            lines += _graduated(component, quantity, price, before.get(component, 0))
        else:
            flat = Tier(0, price.amount_nanos, price.per_units)
            lines.append(Line(component, quantity, flat, _exact(component, quantity, flat)))
    return lines


def _graduated(component: Component, quantity: int, price: Price, before: int) -> Iterator[Line]:
    """A line for each step that the quantity reaches into; one of zero when there is none."""
    scale = component.units_per_quantity
    steps, end = price.steps, before + quantity
    ceilings = [following.above_units * scale for _, following in pairwise(steps)]
    for step, ceiling in zip(steps, [*ceilings, None], strict=True):
        start = max(before, step.above_units * scale)
        stop = end if ceiling is None else min(end, ceiling)
        standing = quantity == 0 and start == end and (ceiling is None or end < ceiling)
        if stop > start or standing:
            part = stop - start
            yield Line(component, part, step, _exact(component, part, step), start)


def _exact(component: Component, quantity: int, price: Price | Tier) -> int:
    divisor = price.per_units * component.units_per_quantity
    return quantity * price.amount_nanos * (SCALE // divisor)


def quantity_of(record: UsageRecord, component: Component, prices: ClassPrices) -> int:
    """How much of a component the record counts, in the record's own unit.

    Cached tokens are input tokens where they have no price of their own.
    """
    match component:
        case Component.INPUT_TOKEN:
            apart = record.cached_tokens if Component.CACHED_TOKEN in prices else 0
            return record.input_tokens - apart
        case Component.OUTPUT_TOKEN:
            return record.output_tokens
        case Component.CACHED_TOKEN:
            return record.cached_tokens
        case Component.REQUEST:
            return 1
        case Component.COMPUTE_SECOND:
            return record.compute_us
        case Component.MEGABYTE:
            return record.request_bytes + record.response_bytes


def graduated_of(prices: ClassPrices) -> list[Component]:
    """Components of which it matters how much was used before."""
    return [component for component, price in prices.items() if price.graduated]


def month_of(unix_ns: int) -> date:
    """The first day of the calendar month (UTC) to which a moment of admission counts."""
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).date().replace(day=1)
