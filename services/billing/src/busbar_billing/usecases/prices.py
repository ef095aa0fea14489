"""Publish a new version of the price book, and end a tenant's own prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from busbar_errors import Rejected

from busbar_billing.domain.money import checked_currency
from busbar_billing.domain.names import checked_text
from busbar_billing.domain.prices import (
    QUANTUM_NANOS_MAX,
    ClassPrices,
    PriceBook,
    PriceBooks,
    checked_classes,
)
from busbar_billing.domain.usage import UNIX_NS_MAX
from busbar_billing.usecases.tenants import Tenant

NOTE_MAX = 500
NOTICE_NS = 10 * 10**9
"""How long before it holds a change is told at the least. A gateway that has not heard of it would
reserve by the old prices what is charged by the new ones. Longer than an election of the bus."""
KNOWN_BEFORE_NS = NOTICE_NS // 2
"""A change that is written later than this before it holds is given up: gateways might hear of it
too late, and what is posted when it holds already might be rated by the prices before."""
_TICK_NS = 1_000
"""The shortest time that the database tells apart."""


class PriceList(Protocol):
    """Where price books are kept."""

    async def all(self) -> PriceBooks:
        """Every version."""
        ...

    async def add(self, book: PriceBook, by_unix_ns: int | None = None) -> PriceBook:
        """Add a version, numbering it; raise Conflict when it overlaps another one, or cannot be
        added by then."""
        ...


class Tenants(Protocol):
    """Who may have prices of their own."""

    async def get(self, tenant_id: str) -> Tenant:
        """Raise NotFound when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Published:
    """A new version; the rest as in PriceBooks."""

    book: PriceBook
    left_to_fallback: list[str]
    ends: PriceBook | None
    followed_by: PriceBook | None


async def publish_prices(
    prices: PriceList,
    tenants: Tenants,
    *,
    currency: str,
    effective_from_unix_ns: int | None,
    quantum_nanos: int,
    classes: Mapping[str, ClassPrices],
    note: str,
    now_unix_ns: int,
    tenant_id: str | None = None,
    effective_until_unix_ns: int | None = None,
) -> Published:
    """Add a version that is in force from `effective_from_unix_ns`, or as soon as gateways know it:
    what was rated stays rated as it was, and nobody owes more than was reserved. With `tenant_id`
    they are that tenant's alone, and may end by themselves at `effective_until_unix_ns`."""
    effective_from_unix_ns = _announced("effective_from", effective_from_unix_ns, now_unix_ns)
    if effective_from_unix_ns > UNIX_NS_MAX:
        raise Rejected("effective_from is after the year 2100")
    if effective_until_unix_ns is not None:
        _check_end(effective_from_unix_ns, effective_until_unix_ns, tenant_id)
    if tenant_id is not None and (tenant := await tenants.get(tenant_id)).currency != currency:
        raise Rejected(f"tenant {tenant_id} pays in {tenant.currency}, not {currency[:20]!r}")
    if not 1 <= quantum_nanos <= QUANTUM_NANOS_MAX:
        raise Rejected(f"charge_quantum_nanos must be 1 to {QUANTUM_NANOS_MAX}")
    wanted = PriceBook(
        version=0,
        currency=checked_currency(currency),
        effective_from_unix_ns=effective_from_unix_ns,
        quantum_nanos=quantum_nanos,
        classes=checked_classes(classes),
        note=checked_text("note", note, NOTE_MAX) if note else "",
        tenant_id=tenant_id,
        effective_until_unix_ns=effective_until_unix_ns,
    )
    return await _add(prices, wanted, effective_from_unix_ns)


async def end_prices(
    prices: PriceList,
    tenants: Tenants,
    *,
    tenant_id: str,
    ends_unix_ns: int | None,
    note: str,
    now_unix_ns: int,
) -> Published:
    """Let everybody's prices hold for a tenant from `ends_unix_ns` on, or as soon as gateways know.

    A version never changes, so another one with the same prices takes the place of the one that
    would hold at that moment, and ends there. Versions that begin later stay as they are.
    """
    ends_unix_ns = _announced("effective_until", ends_unix_ns, now_unix_ns)
    currency, books = (await tenants.get(tenant_id)).currency, await prices.all()
    held = books.in_force(currency, ends_unix_ns - _TICK_NS, tenant_id)
    if held.tenant_id is None:
        raise Rejected(f"tenant {tenant_id} has no prices of its own then: nothing is to be ended")
    if held.effective_until_unix_ns == ends_unix_ns:
        raise Rejected(f"price book {held.version} ends at that moment already")
    begins_unix_ns = max(now_unix_ns, held.effective_from_unix_ns + _TICK_NS)
    _check_end(begins_unix_ns, ends_unix_ns, tenant_id)
    same = replace(
        held,
        version=0,
        effective_from_unix_ns=begins_unix_ns,
        effective_until_unix_ns=ends_unix_ns,
        note=checked_text("note", note, NOTE_MAX) if note else f"ends price book {held.version}",
    )
    return await _add(prices, same, ends_unix_ns)


def _announced(what: str, wanted_unix_ns: int | None, now_unix_ns: int) -> int:
    """When a change begins to hold: as wanted, or as soon as may be."""
    soonest_unix_ns = now_unix_ns + NOTICE_NS
    if wanted_unix_ns is None:
        return soonest_unix_ns
    if wanted_unix_ns < now_unix_ns:
        raise Rejected(f"{what} has passed: prices cannot change what was already used")
    if wanted_unix_ns < soonest_unix_ns:
        raise Rejected(
            f"{what} is too soon: prices change {NOTICE_NS // 10**9} s after they are published at "
            "the earliest, when every gateway knows them; leave it out for that"
        )
    return wanted_unix_ns


async def _add(prices: PriceList, wanted: PriceBook, changes_unix_ns: int) -> Published:
    left_to_fallback = (await prices.all()).left_to_fallback(wanted)
    book = await prices.add(wanted, changes_unix_ns - KNOWN_BEFORE_NS)
    books = await prices.all()
    return Published(book, left_to_fallback, books.ended_by(book), books.following(book))


def _check_end(begins_unix_ns: int, ends_unix_ns: int, tenant_id: str | None) -> None:
    if tenant_id is None:
        raise Rejected("everybody's prices end when the next ones begin: leave effective_until out")
    if not begins_unix_ns < ends_unix_ns <= UNIX_NS_MAX:
        raise Rejected("effective_until must be after effective_from and before the year 2100")
