"""Routes of the price book."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter

from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.showing import show_book
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain.prices import Price
from busbar_billing.usecases.prices import publish_prices

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def price_routes(prices: Prices) -> APIRouter:
    """GET, POST /prices."""
    router = APIRouter(prefix="/admin/v1/prices", tags=["prices"])

    @router.get("")
    async def list_all() -> schemas.Page[schemas.PricesAnswer]:
        books, now_ns = await prices.all(), time.time_ns()
        shown = [
            show_book(book, in_force=book is books.in_force(book.currency, now_ns))
            for book in books.newest_first
        ]
        return schemas.Page(items=shown, next_cursor=None)

    @router.post("", status_code=201)
    async def publish(wanted: schemas.WantedPrices) -> schemas.PricesAnswer:
        now_ns = time.time_ns()
        book = await publish_prices(
            prices,
            currency=wanted.currency,
            effective_from_unix_ns=_unix_ns(wanted.effective_from, now_ns),
            quantum_nanos=wanted.charge_quantum_nanos,
            classes={
                name: {
                    component: Price(entry.amount_nanos, entry.per_units)
                    for component, entry in entries.items()
                }
                for name, entries in wanted.classes.items()
            },
            note=wanted.note,
            now_unix_ns=now_ns,
        )
        return show_book(book, in_force=book.effective_from_unix_ns <= time.time_ns())

    return router


def _unix_ns(moment: datetime | None, now_ns: int) -> int:
    """The wanted moment; without one now, and to the microsecond, as it will be stored."""
    if moment is None:
        return -(-now_ns // 1000) * 1000
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
