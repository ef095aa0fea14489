"""The `prices` bucket, from which gateways learn what a request can cost at most."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from datetime import timedelta

import structlog
from busbar_contracts.billing.v1 import prices_pb2
from busbar_errors import Unavailable
from busbar_messaging import topology
from busbar_messaging.background import together
from busbar_messaging.bucket_changes import Current, Deleted, Put
from busbar_messaging.watching import follow
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain.prices import Component, PriceBook

log = structlog.get_logger()

RECONCILE_INTERVAL = timedelta(seconds=5)
KEPT_AFTER = timedelta(hours=1)
"""How long a superseded version stays: longer than any request that was admitted under it."""
_RETRY_PAUSE_S = 0.5
_BUS_AWAY = (NatsError, JetStreamError, TimeoutError, OSError)
_COMPONENTS = {
    Component.INPUT_TOKEN: prices_pb2.PRICE_COMPONENT_INPUT_TOKEN,
    Component.OUTPUT_TOKEN: prices_pb2.PRICE_COMPONENT_OUTPUT_TOKEN,
    Component.CACHED_TOKEN: prices_pb2.PRICE_COMPONENT_CACHED_TOKEN,
    Component.REQUEST: prices_pb2.PRICE_COMPONENT_REQUEST,
    Component.COMPUTE_SECOND: prices_pb2.PRICE_COMPONENT_COMPUTE_SECOND,
    Component.MEGABYTE: prices_pb2.PRICE_COMPONENT_MEGABYTE,
}


class PriceDirectoryBucket:
    """Keeps the bucket equal to the price books that hold now or will."""

    def __init__(self, client: Client, prices: Prices) -> None:
        self._client = client
        self._prices = prices
        self._mirror: dict[str, bytes] = {}
        self._complete = False
        self._wanted = asyncio.Event()

    def changed(self) -> None:
        """There is a new version: tell the gateways now."""
        self._wanted.set()

    async def run(self) -> None:
        """Keep the bucket equal to the database, for ever."""
        await together(self._watch(), self._reconcile_when_wanted())

    async def _watch(self) -> None:
        async for change in follow(self._client, topology.PRICES.name):
            match change:
                case Put(key, value, _):
                    self._mirror[key] = value
                case Deleted(key):
                    self._mirror.pop(key, None)
                    self._wanted.set()
                case Current():
                    self._complete = True
                    self._wanted.set()

    async def _reconcile_when_wanted(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), RECONCILE_INTERVAL.total_seconds())
            self._wanted.clear()
            if not self._complete:
                continue
            try:
                await self._reconcile()
            except (*_BUS_AWAY, Unavailable) as error:
                log.warning("prices not reconciled", error=repr(error))
                await asyncio.sleep(_RETRY_PAUSE_S)
                self._wanted.set()

    async def _reconcile(self) -> None:
        books = (await self._prices.all()).newest_first
        wanted = {f"{one.currency}.{one.version}": encode_sheet(one) for one in current(books)}
        bucket = await self._client.jetstream(timeout=2).key_value(topology.PRICES.name)
        for name, value in wanted.items():
            if self._mirror.get(name) != value:
                await bucket.put(name, value)
                self._mirror[name] = value
        for name in self._mirror.keys() - wanted.keys():
            await bucket.delete(name)
            self._mirror.pop(name, None)


def current(newest_first: Iterable[PriceBook]) -> list[PriceBook]:
    """The versions that a request admitted lately, or from now on, can be charged by."""
    horizon_ns = time.time_ns() - round(KEPT_AFTER.total_seconds() * 1e9)
    kept: list[PriceBook] = []
    done: set[tuple[str, str | None]] = set()
    for book in newest_first:
        until = book.effective_until_unix_ns
        if book.line not in done and (until is None or until > horizon_ns):
            kept.append(book)
        if book.effective_from_unix_ns <= horizon_ns:
            done.add(book.line)
    return kept


def encode_sheet(book: PriceBook) -> bytes:
    """The bucket's value for a version; the same version always gives the same bytes."""
    sheet = prices_pb2.PriceSheet(
        version=book.version,
        currency=book.currency,
        effective_from_unix_ns=book.effective_from_unix_ns,
        effective_until_unix_ns=book.effective_until_unix_ns or 0,
        tenant_id=book.tenant_id or "",
        charge_quantum_nanos=book.quantum_nanos,
        classes=[
            prices_pb2.ClassCeiling(
                price_class=name,
                components=[
                    prices_pb2.ComponentCeiling(
                        component=_COMPONENTS[component],
                        amount_nanos=price.dearest.amount_nanos,
                        per_units=price.dearest.per_units,
                    )
                    for component, price in sorted(prices.items())
                ],
            )
            for name, prices in sorted(book.classes.items())
        ],
    )
    return sheet.SerializeToString(deterministic=True)
