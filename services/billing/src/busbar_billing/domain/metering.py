"""What was used of a month: it decides which tier and how much of an allowance are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from busbar_billing.domain.prices import Component, PriceBook
from busbar_billing.domain.rating import graduated_of, month_of, quantity_of
from busbar_billing.domain.usage import UsageRecord


@dataclass(frozen=True, slots=True, order=True)
class Meter:
    """Counts what one tenant used of one component of one price class in one calendar month (UTC,
    by admission), from when that component first had tiers or an allowance."""

    tenant_id: str
    month: date
    price_class: str
    component: Component


def meters_of(record: UsageRecord, book: PriceBook) -> Sequence[Meter]:
    """The meters that decide what `record` costs; none where prices are flat."""
    rated_class, prices = book.resolve(record.price_class)
    graduated = graduated_of(prices)
    if not graduated:
        return ()
    month = month_of(record.admitted_unix_ns)
    return [Meter(record.tenant_id, month, rated_class, component) for component in graduated]


def consumed_by(
    record: UsageRecord, book: PriceBook, meters: Sequence[Meter]
) -> Mapping[Meter, int]:
    """By how much `record` moves each of its meters, counted as in the record."""
    _, prices = book.resolve(record.price_class)
    return {meter: quantity_of(record, meter.component, prices) for meter in meters}
