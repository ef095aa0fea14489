"""What a request costs, line by line: quantities times prices, rounded once at the end."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_errors import Rejected

from busbar_billing.domain.money import round_half_even
from busbar_billing.domain.prices import ClassPrices, Component, Price, PriceBook
from busbar_billing.domain.usage import UsageRecord

SCALE = 10**12
"""Exact amounts are integers over this: the largest `per_units` times the finest quantity."""
CHARGE_NANOS_MAX = 10**15
"""A million units of the currency: a single request that costs more is an error."""


@dataclass(frozen=True, slots=True)
class Line:
    """One component: `quantity` counted as in the usage record (µs, bytes, tokens, requests)."""

    component: Component
    quantity: int
    price: Price
    exact: int

    @property
    def exact_nanos(self) -> str:
        """The line's amount in nanos as an exact decimal, such as "1234.5"."""
        whole, fraction = divmod(self.exact, SCALE)
        return f"{whole}.{fraction:012d}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Rating:
    """A rated record. `charge_nanos` is what the tenant pays, `earned_nanos` the exact amount
    rounded to nanos; the two differ by less than the book's quantum."""

    price_version: int
    rated_class: str
    currency: str
    charge_nanos: int
    earned_nanos: int


def rate(record: UsageRecord, book: PriceBook) -> Rating:
    """Rate `record` by `book`; raise Rejected when the amount is absurd.

    The exact sum is rounded half-even once per posting: to the book's quantum
    for the tenant, to a nano for revenue.
    """
    rated_class, prices = book.resolve(record.price_class)
    exact = 0
    for component, price in prices.items():
        exact += _exact(component, _quantity(record, component), price)
    charge_nanos = book.quantum_nanos * round_half_even(exact, SCALE * book.quantum_nanos)
    if charge_nanos > CHARGE_NANOS_MAX:
        raise Rejected(f"request would cost {charge_nanos} nanos: at most {CHARGE_NANOS_MAX}")
    return Rating(
        price_version=book.version,
        rated_class=rated_class,
        currency=book.currency,
        charge_nanos=charge_nanos,
        earned_nanos=round_half_even(exact, SCALE),
    )


def explain(record: UsageRecord, prices: ClassPrices) -> list[Line]:
    """The lines behind a rating; their exact sum is what is rounded."""
    lines: list[Line] = []
    for component, price in prices.items():
        quantity = _quantity(record, component)
        lines.append(Line(component, quantity, price, _exact(component, quantity, price)))
    return lines


def _exact(component: Component, quantity: int, price: Price) -> int:
    divisor = price.per_units * component.units_per_quantity
    return quantity * price.amount_nanos * (SCALE // divisor)


def _quantity(record: UsageRecord, component: Component) -> int:
    match component:
        case Component.INPUT_TOKEN:
            return record.input_tokens
        case Component.OUTPUT_TOKEN:
            return record.output_tokens
        case Component.REQUEST:
            return 1
        case Component.COMPUTE_SECOND:
            return record.compute_us
        case Component.MEGABYTE:
            return record.request_bytes + record.response_bytes
