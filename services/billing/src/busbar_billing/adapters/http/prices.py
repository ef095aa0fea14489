"""Routes of the price book."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter

from busbar_billing.adapters.bus.price_directory import PriceDirectoryBucket
from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.showing import moment, show_book
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.prices import Price, PriceBook, Tier
from busbar_billing.usecases.prices import Published, end_prices, publish_prices

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def price_routes(prices: Prices, tenants: Tenants, directory: PriceDirectoryBucket) -> APIRouter:
    """GET, POST /prices; POST /prices/ends."""
    router = APIRouter(prefix="/admin/v1/prices", tags=["prices"])

    @router.get("")
    async def list_all() -> schemas.Page[schemas.PricesAnswer]:
        """List the versions of the price book."""
        books, now_ns = await prices.all(), time.time_ns()
        shown = [
            show_book(book, in_force=book is books.in_force(book.currency, now_ns, book.tenant_id))
            for book in books.newest_first
        ]
        return schemas.Page(items=shown, next_cursor=None)

    @router.post("", status_code=201)
    async def publish(wanted: schemas.WantedPrices) -> schemas.PublishedPricesAnswer:
        """Publish a version of the price book."""
        now_ns = unix_ns(None, time.time_ns())
        begins, until = wanted.effective_from, wanted.effective_until
        published = await publish_prices(
            prices,
            tenants,
            currency=wanted.currency,
            effective_from_unix_ns=None if begins is None else unix_ns(begins, now_ns),
            quantum_nanos=wanted.charge_quantum_nanos,
            classes={
                name: {component: _price(entry) for component, entry in entries.items()}
                for name, entries in wanted.classes.items()
            },
            note=wanted.note,
            now_unix_ns=now_ns,
            tenant_id=wanted.tenant_id,
            effective_until_unix_ns=None if until is None else unix_ns(until, now_ns),
        )
        directory.changed()
        return _show(published)

    @router.post("/ends", status_code=201)
    async def end(wanted: schemas.WantedEnd) -> schemas.PublishedPricesAnswer:
        """End a tenant's own prices: from then on everybody's hold for it.

        The version that would have held on is followed by one with the same prices, which ends.
        """
        now_ns = unix_ns(None, time.time_ns())
        until = wanted.effective_until
        published = await end_prices(
            prices,
            tenants,
            tenant_id=wanted.tenant_id,
            ends_unix_ns=None if until is None else unix_ns(until, now_ns),
            note=wanted.note,
            now_unix_ns=now_ns,
        )
        directory.changed()
        return _show(published)

    return router


def _show(published: Published) -> schemas.PublishedPricesAnswer:
    book = published.book
    shown = show_book(book, in_force=book.covers(time.time_ns())).model_dump()
    return schemas.PublishedPricesAnswer(
        **shown,
        left_to_default=published.left_to_fallback,
        ends=_named(published.ends),
        followed_by=_named(published.followed_by),
    )


def _named(book: PriceBook | None) -> schemas.PricesNamed | None:
    if book is None:
        return None
    until = book.effective_until_unix_ns
    return schemas.PricesNamed(
        version=book.version,
        tenant_id=book.tenant_id,
        effective_until=None if until is None else moment(until),
    )


def _price(entry: schemas.PriceEntry) -> Price:
    tiers = tuple(
        Tier(tier.above_units, tier.amount_nanos, tier.per_units or entry.per_units)
        for tier in entry.tiers
    )
    return Price(entry.amount_nanos, entry.per_units, entry.free_units, tiers)


def unix_ns(moment: datetime | None, now_ns: int) -> int:
    """The wanted moment; without one now, and to the microsecond, as it will be stored."""
    if moment is None:
        return -(-now_ns // 1000) * 1000
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
