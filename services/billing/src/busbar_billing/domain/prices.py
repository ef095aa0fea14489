"""The price book: versions with a date from which each is in force.

There is one line of versions for everybody in each currency, and one for each
tenant that has prices of its own, which take the place of everybody's while
they last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from fractions import Fraction

from busbar_errors import Conflict, NotFound, Rejected

FALLBACK_CLASS = "default"
"""Prices whatever has no price class of its own, so that nothing is served for free by accident."""
PER_UNITS = (1, 1_000, 1_000_000)
PRICE_NANOS_MAX = 10**15
QUANTUM_NANOS_MAX = 10**9
CLASSES_MAX = 1_000
TIERS_MAX = 20
UNITS_MAX = 10**15
"""Most units that a tier or an allowance can name: beyond any month's use."""

_CLASS = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Component(StrEnum):
    """What can have a price."""

    INPUT_TOKEN = "input_token"  # noqa: S105
    OUTPUT_TOKEN = "output_token"  # noqa: S105
    CACHED_TOKEN = "cached_token"  # noqa: S105
    REQUEST = "request"
    COMPUTE_SECOND = "compute_second"
    MEGABYTE = "megabyte"

    @property
    def units_per_quantity(self) -> int:
        """How many counted quantities make one unit: seconds are counted in µs, MB in bytes."""
        return _UNITS_PER_QUANTITY.get(self, 1)


_UNITS_PER_QUANTITY = {Component.COMPUTE_SECOND: 1_000_000, Component.MEGABYTE: 1_000_000}


@dataclass(frozen=True, slots=True)
class Tier:
    """What units cost once the month's quantity is above `above_units`."""

    above_units: int
    amount_nanos: int
    per_units: int


@dataclass(frozen=True, slots=True)
class Price:
    """`amount_nanos` buys `per_units` units of a component.

    The first `free_units` of a calendar month (UTC) cost nothing. Tiers are graduated: each prices
    the units between its own threshold and the next one's, by the tenant's quantity of the month in
    that class, free units included.
    """

    amount_nanos: int
    per_units: int
    free_units: int = 0
    tiers: tuple[Tier, ...] = ()

    @property
    def graduated(self) -> bool:
        """Whether what a unit costs depends on what was used before it."""
        return self.free_units > 0 or bool(self.tiers)

    @property
    def steps(self) -> list[Tier]:
        """The price from the first unit of a month on, threshold by threshold."""
        free = [Tier(0, 0, self.per_units)] if self.free_units else []
        return [*free, Tier(self.free_units, self.amount_nanos, self.per_units), *self.tiers]

    @property
    def dearest(self) -> Tier:
        """The step whose units cost most: what nobody ever pays more than."""
        return max(self.steps, key=lambda step: Fraction(step.amount_nanos, step.per_units))


ClassPrices = Mapping[Component, Price]


@dataclass(frozen=True, slots=True)
class PriceBook:
    """One version. Charges are rounded to multiples of `quantum_nanos`.

    In force until the next one of its line begins, or until `effective_until_unix_ns` where it has
    that and no other began before: then everybody's prices hold again.
    """

    version: int
    currency: str
    effective_from_unix_ns: int
    quantum_nanos: int
    classes: Mapping[str, ClassPrices]
    note: str = ""
    tenant_id: str | None = None
    effective_until_unix_ns: int | None = None
    created_unix_ns: int = 0

    def resolve(self, price_class: str) -> tuple[str, ClassPrices]:
        """The class to rate by and its prices: the one asked for, or the fallback."""
        prices = self.classes.get(price_class)
        if prices is not None:
            return price_class, prices
        return FALLBACK_CLASS, self.classes[FALLBACK_CLASS]

    @property
    def line(self) -> tuple[str, str | None]:
        """Which versions it takes turns with."""
        return self.currency, self.tenant_id

    def covers(self, at_unix_ns: int) -> bool:
        """Whether it has begun and not ended; a newer one may be in force all the same."""
        until = self.effective_until_unix_ns
        return self.effective_from_unix_ns <= at_unix_ns and (until is None or at_unix_ns < until)


class PriceBooks:
    """Every version of every currency."""

    def __init__(self, books: Iterable[PriceBook]) -> None:
        self._lines: dict[tuple[str, str | None], list[PriceBook]] = {}
        for book in sorted(books, key=lambda book: book.effective_from_unix_ns, reverse=True):
            self._lines.setdefault(book.line, []).append(book)
        self.any_graduated = any(
            price.graduated
            for book in self.newest_first
            for prices in book.classes.values()
            for price in prices.values()
        )
        """Whether it can matter what was used before."""

    @property
    def currencies(self) -> frozenset[str]:
        """Currencies that have prices for everybody."""
        return frozenset(currency for currency, tenant_id in self._lines if tenant_id is None)

    @property
    def newest_first(self) -> list[PriceBook]:
        """All versions, line by line."""
        return [book for books in self._lines.values() for book in books]

    def known_at(self, unix_ns: int) -> PriceBooks:
        """Those that had been published by then."""
        return PriceBooks(book for book in self.newest_first if book.created_unix_ns <= unix_ns)

    def version(self, number: int) -> PriceBook:
        """One version; raise NotFound when there is none of that number."""
        for book in self.newest_first:
            if book.version == number:
                return book
        raise NotFound(f"there is no price book {number}")

    def in_force(self, currency: str, at_unix_ns: int, tenant_id: str | None = None) -> PriceBook:
        """The tenant's own version in force, else everybody's; before the first one, the first.

        Raises Rejected when the currency has no prices at all.
        """
        if tenant_id is not None and (own := self._lines.get((currency, tenant_id))):
            newest = _begun(own, at_unix_ns)
            if newest is not None and newest.covers(at_unix_ns):
                return newest
        books = self._lines.get((currency, None))
        if not books:
            raise Rejected(f"there are no prices in {currency[:20]!r}")
        return _begun(books, at_unix_ns) or books[-1]

    def left_to_fallback(self, wanted: PriceBook) -> list[str]:
        """Classes that have a price of their own as `wanted` begins, and none in it."""
        if wanted.currency not in self.currencies:
            return []
        begins = wanted.effective_from_unix_ns
        before = [
            self.in_force(wanted.currency, begins, whose) for whose in {None, wanted.tenant_id}
        ]
        return sorted({name for book in before for name in book.classes} - wanted.classes.keys())

    def ended_by(self, book: PriceBook) -> PriceBook | None:
        """The version of its line that would still hold where `book` begins."""
        begins = book.effective_from_unix_ns
        before = _begun(self._lines.get(book.line, []), begins - 1)
        return before if before is not None and before.covers(begins) else None

    def following(self, book: PriceBook) -> PriceBook | None:
        """What holds once `book` has ended, by itself or by the next of its line, as far as that
        is known: where it has an end of its own, never what it ended, but everybody's."""
        begins = book.effective_from_unix_ns
        line = self._lines.get(book.line, [])
        ends = [one.effective_from_unix_ns for one in line if one.effective_from_unix_ns > begins]
        if book.effective_until_unix_ns is not None:
            ends.append(book.effective_until_unix_ns)
        return self.in_force(book.currency, min(ends), book.tenant_id) if ends else None

    def check_no_overlap(self, wanted: PriceBook) -> None:
        """Raise Conflict when it would be unclear which of `wanted` and another one holds.

        One that begins while another holds ends that one, also before the end that it has.
        """
        begins, ends = wanted.effective_from_unix_ns, wanted.effective_until_unix_ns
        for other in self._lines.get(wanted.line, []):
            start = other.effective_from_unix_ns
            if start == begins:
                raise Conflict(f"price book {other.version} begins at the same moment")
            if begins < start and ends is not None and start < ends:
                raise Conflict(
                    f"price book {other.version} begins at {_written(start)}, "
                    "before the prices wanted would end"
                )


def _written(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _begun(newest_first: Iterable[PriceBook], at_unix_ns: int) -> PriceBook | None:
    for book in newest_first:
        if book.effective_from_unix_ns <= at_unix_ns:
            return book
    return None


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
        if not prices:
            raise Rejected(f"{name} has no prices: what is free has one of 0")
        for component, price in prices.items():
            _check_price(f"{name}.{component}", price)
        _check_cached(name, prices)
    return classes


def _check_price(name: str, price: Price) -> None:
    if not 0 <= price.free_units <= UNITS_MAX:
        raise Rejected(f"{name}: free_units must be 0 to {UNITS_MAX}")
    if len(price.tiers) > TIERS_MAX:
        raise Rejected(f"{name}: at most {TIERS_MAX} tiers, not {len(price.tiers)}")
    below = price.free_units
    for tier in price.tiers:
        if not below < tier.above_units <= UNITS_MAX:
            raise Rejected(
                f"{name}: a tier begins above {tier.above_units}; tiers rise, from above "
                f"free_units to at most {UNITS_MAX}"
            )
        below = tier.above_units
    for step in (price, *price.tiers):
        if step.per_units not in PER_UNITS:
            raise Rejected(f"{name}: per_units must be one of {PER_UNITS}")
        if not 0 <= step.amount_nanos <= PRICE_NANOS_MAX:
            raise Rejected(f"{name}: amount_nanos must be 0 to {PRICE_NANOS_MAX}")


def _check_cached(name: str, prices: ClassPrices) -> None:
    """A cached token is an input token that costs less: whoever reserves for input is covered."""
    cached = prices.get(Component.CACHED_TOKEN)
    if cached is None:
        return
    whole = prices.get(Component.INPUT_TOKEN)
    if whole is None:
        raise Rejected(f"{name}: cached_token needs a price of input_token beside it")
    most, least = cached.dearest, whole.dearest
    if most.amount_nanos * least.per_units > least.amount_nanos * most.per_units:
        raise Rejected(f"{name}: cached_token must not cost more than input_token")
