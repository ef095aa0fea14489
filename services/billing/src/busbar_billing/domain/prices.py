"""The price book: versions with a date from which each is in force."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from busbar_errors import NotFound, Rejected

FALLBACK_CLASS = "default"
"""Prices whatever has no price class of its own, so that nothing is served for free by accident."""
PER_UNITS = (1, 1_000, 1_000_000)
PRICE_NANOS_MAX = 10**15
QUANTUM_NANOS_MAX = 10**9
CLASSES_MAX = 1_000

_CLASS = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Component(StrEnum):
    """What can have a price."""

    INPUT_TOKEN = "input_token"  # noqa: S105
    OUTPUT_TOKEN = "output_token"  # noqa: S105
    REQUEST = "request"
    COMPUTE_SECOND = "compute_second"
    MEGABYTE = "megabyte"

    @property
    def units_per_quantity(self) -> int:
        """How many counted quantities make one unit: seconds are counted in µs, MB in bytes."""
        return 1_000_000 if self in {Component.COMPUTE_SECOND, Component.MEGABYTE} else 1


@dataclass(frozen=True, slots=True)
class Price:
    """`amount_nanos` buys `per_units` units of a component."""

    amount_nanos: int
    per_units: int


ClassPrices = Mapping[Component, Price]


@dataclass(frozen=True, slots=True)
class PriceBook:
    """One version. Charges are rounded to multiples of `quantum_nanos`."""

    version: int
    currency: str
    effective_from_unix_ns: int
    quantum_nanos: int
    classes: Mapping[str, ClassPrices]
    note: str = ""

    def resolve(self, price_class: str) -> tuple[str, ClassPrices]:
        """The class to rate by and its prices: the one asked for, or the fallback."""
        prices = self.classes.get(price_class)
        if prices is not None:
            return price_class, prices
        return FALLBACK_CLASS, self.classes[FALLBACK_CLASS]


class PriceBooks:
    """Every version of every currency."""

    def __init__(self, books: Iterable[PriceBook]) -> None:
        self._by_currency: dict[str, list[PriceBook]] = {}
        for book in sorted(books, key=lambda book: book.effective_from_unix_ns, reverse=True):
            self._by_currency.setdefault(book.currency, []).append(book)

    @property
    def currencies(self) -> frozenset[str]:
        """Currencies that have prices."""
        return frozenset(self._by_currency)

    @property
    def newest_first(self) -> list[PriceBook]:
        """All versions, currency by currency."""
        return [book for books in self._by_currency.values() for book in books]

    def version(self, number: int) -> PriceBook:
        """One version; raise NotFound when there is none of that number."""
        for book in self.newest_first:
            if book.version == number:
                return book
        raise NotFound(f"there is no price book {number}")

    def in_force(self, currency: str, at_unix_ns: int) -> PriceBook:
        """The version in force; before the first one began, the first.

        Raises Rejected when the currency has no prices at all.
        """
        books = self._by_currency.get(currency)
        if not books:
            raise Rejected(f"there are no prices in {currency[:20]!r}")
        for book in books:
            if book.effective_from_unix_ns <= at_unix_ns:
                return book
        return books[-1]


def checked_classes(classes: Mapping[str, ClassPrices]) -> Mapping[str, ClassPrices]:
    """Return what may be published as a price book; raise Rejected otherwise."""
    if FALLBACK_CLASS not in classes:
        raise Rejected(
            f"a price book needs the class {FALLBACK_CLASS!r}, for what has no own price"
        )
    if len(classes) > CLASSES_MAX:
        raise Rejected(f"a price book holds at most {CLASSES_MAX} classes, not {len(classes)}")
    for name, prices in classes.items():
        if not _CLASS.fullmatch(name):
            raise Rejected(f"{name[:80]!r} is not a price class: use {_CLASS.pattern}")
        for component, price in prices.items():
            _check_price(name, component, price)
    return classes


def _check_price(name: str, component: Component, price: Price) -> None:
    if price.per_units not in PER_UNITS:
        raise Rejected(f"{name}.{component}: per_units must be one of {PER_UNITS}")
    if not 0 <= price.amount_nanos <= PRICE_NANOS_MAX:
        raise Rejected(f"{name}.{component}: amount_nanos must be 0 to {PRICE_NANOS_MAX}")
