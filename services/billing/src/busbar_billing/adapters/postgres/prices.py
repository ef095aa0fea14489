"""The price book, as rows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import asyncpg
from busbar_errors import Conflict

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.warrants import Warrants
from busbar_billing.domain.prices import Component, Price, PriceBook, PriceBooks, Tier
from busbar_billing.domain.warrants import prices_say, prices_subject

_LOCK = 0x70_72_69_63_65_73  # "prices": any constant number, the same in every instance
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_ADD_BOOK = """
    INSERT INTO price_books (
        currency, effective_from, charge_quantum_nanos, note, tenant_id, effective_until
    )
    VALUES ($1, $2, $3, $4, $5, $6)
    RETURNING version
"""
_ADD_PRICE = """
    INSERT INTO prices (version, price_class, component, amount_nanos, per_units, free_units)
    VALUES ($1, $2, $3, $4, $5, $6)
"""
_ADD_TIER = """
    INSERT INTO price_tiers (
        version, price_class, component, above_units, amount_nanos, per_units
    )
    VALUES ($1, $2, $3, $4, $5, $6)
"""


class Prices:
    """Every version of the price book; read again when there is a new one."""

    def __init__(self, database: Database, warrants: Warrants) -> None:
        self._database = database
        self._warrants = warrants
        self._books = PriceBooks([])
        self._newest_version = -1

    async def all(self) -> PriceBooks:
        """Every version."""
        async with self._database.connection() as connection:
            return await self.current(connection)

    async def current(self, connection: Connection) -> PriceBooks:
        """Every version, as this connection sees them. A version never changes once it is there."""
        if await self._newest(connection) != self._newest_version:
            return await self.read_again(connection)
        return self._books

    async def read_again(self, connection: Connection) -> PriceBooks:
        """Every version as it stands, whatever was read before: for who does not trust that."""
        newest = await self._newest(connection)
        self._books = await _read_books(connection)
        self._newest_version = newest
        return self._books

    async def _newest(self, connection: Connection) -> int:
        return await connection.fetchval("SELECT coalesce(max(version), 0) FROM price_books")

    async def add(self, book: PriceBook, by_unix_ns: int | None = None) -> PriceBook:
        """Add a version, numbering it; raise Conflict when it overlaps another one, or cannot be
        added by then."""
        async with self._database.transaction() as connection:
            # One at a time, so that versions become visible in the order of their numbers.
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            (await _read_books(connection)).check_no_overlap(book)
            until = book.effective_until_unix_ns
            version = await connection.fetchval(
                _ADD_BOOK,
                book.currency,
                from_unix_ns(book.effective_from_unix_ns),
                book.quantum_nanos,
                book.note,
                book.tenant_id,
                None if until is None else from_unix_ns(until),
            )
            await connection.executemany(_ADD_PRICE, _price_rows(version, book))
            await connection.executemany(_ADD_TIER, _tier_rows(version, book))
            await self.vouch(connection, version)
            if by_unix_ns is not None and time.time_ns() > by_unix_ns:
                raise Conflict("it took too long to write these prices: none changed, try again")
        books = await self.all()
        return books.version(version)

    async def vouch(self, connection: Connection, version: int) -> None:
        """Vouch for a version as it is kept, inside the transaction that adds it."""
        kept = (await _read_books(connection)).version(version)
        await self._warrants.add(connection, {prices_subject(version): prices_say(kept)})


def _price_rows(version: int, book: PriceBook) -> list[tuple[object, ...]]:
    return [
        (version, name, component.value, price.amount_nanos, price.per_units, price.free_units)
        for name, prices in book.classes.items()
        for component, price in prices.items()
    ]


def _tier_rows(version: int, book: PriceBook) -> list[tuple[object, ...]]:
    return [
        (version, name, component.value, tier.above_units, tier.amount_nanos, tier.per_units)
        for name, prices in book.classes.items()
        for component, price in prices.items()
        for tier in price.tiers
    ]


async def _read_books(connection: Connection) -> PriceBooks:
    books = await connection.fetch("SELECT * FROM price_books")
    tiers: defaultdict[tuple[object, ...], list[Tier]] = defaultdict(list)
    for row in await connection.fetch("SELECT * FROM price_tiers ORDER BY above_units"):
        key = (row["version"], row["price_class"], row["component"])
        tiers[key].append(Tier(row["above_units"], row["amount_nanos"], row["per_units"]))
    classes: dict[int, dict[str, dict[Component, Price]]] = {}
    rows = await connection.fetch("SELECT * FROM prices ORDER BY version, price_class, component")
    for row in rows:
        by_class = classes.setdefault(row["version"], {})
        prices = by_class.setdefault(row["price_class"], {})
        key = (row["version"], row["price_class"], row["component"])
        prices[Component(row["component"])] = Price(
            row["amount_nanos"], row["per_units"], row["free_units"], tuple(tiers[key])
        )
    return PriceBooks(_read_book(row, classes.get(row["version"], {})) for row in books)


def _read_book(row: asyncpg.Record, classes: Mapping[str, Mapping[Component, Price]]) -> PriceBook:
    until: datetime | None = row["effective_until"]
    return PriceBook(
        version=row["version"],
        currency=row["currency"],
        effective_from_unix_ns=to_unix_ns(row["effective_from"]),
        quantum_nanos=row["charge_quantum_nanos"],
        classes=classes,
        note=row["note"],
        tenant_id=row["tenant_id"],
        effective_until_unix_ns=None if until is None else to_unix_ns(until),
        created_unix_ns=to_unix_ns(row["created_at"]),
    )


def from_unix_ns(unix_ns: int) -> datetime:
    """A moment as Postgres keeps it, to the microsecond, rounded down."""
    return _EPOCH + timedelta(microseconds=unix_ns // 1000)


def to_unix_ns(moment: datetime) -> int:
    """A moment as messages carry it."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
