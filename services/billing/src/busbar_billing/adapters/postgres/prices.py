"""The price book, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import asyncpg
from busbar_errors import Conflict

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.domain.prices import Component, Price, PriceBook, PriceBooks

_LOCK = 0x70_72_69_63_65_73  # "prices": any constant number, the same in every instance
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Prices:
    """Every version of the price book; read again when there is a new one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._books = PriceBooks([])
        self._newest_version = -1

    async def all(self) -> PriceBooks:
        """Every version."""
        async with self._database.connection() as connection:
            return await self.current(connection)

    async def current(self, connection: Connection) -> PriceBooks:
        """Every version, as this connection sees them. A version never changes once it is there."""
        newest = await connection.fetchval("SELECT coalesce(max(version), 0) FROM price_books")
        if newest != self._newest_version:
            self._books = await _read_books(connection)
            self._newest_version = newest
        return self._books

    async def add(self, book: PriceBook) -> PriceBook:
        """Add a version, numbering it; raise Conflict when one begins at the same moment."""
        async with self._database.transaction() as connection:
            # One at a time, so that versions become visible in the order of their numbers.
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            try:
                version = await connection.fetchval(
                    "INSERT INTO price_books (currency, effective_from, charge_quantum_nanos, note)"
                    " VALUES ($1, $2, $3, $4) RETURNING version",
                    book.currency,
                    from_unix_ns(book.effective_from_unix_ns),
                    book.quantum_nanos,
                    book.note,
                )
            except asyncpg.UniqueViolationError as error:
                raise Conflict("another price book begins at the same moment") from error
            rows = [
                (version, name, component.value, price.amount_nanos, price.per_units)
                for name, prices in book.classes.items()
                for component, price in prices.items()
            ]
            await connection.executemany("INSERT INTO prices VALUES ($1, $2, $3, $4, $5)", rows)
        books = await self.all()
        return next(one for one in books.newest_first if one.version == version)


async def _read_books(connection: Connection) -> PriceBooks:
    books = await connection.fetch("SELECT * FROM price_books")
    rows = await connection.fetch("SELECT * FROM prices ORDER BY version, price_class, component")
    classes: dict[int, dict[str, dict[Component, Price]]] = {}
    for row in rows:
        by_class = classes.setdefault(row["version"], {})
        prices = by_class.setdefault(row["price_class"], {})
        prices[Component(row["component"])] = Price(row["amount_nanos"], row["per_units"])
    return PriceBooks(_read_book(row, classes.get(row["version"], {})) for row in books)


def _read_book(row: asyncpg.Record, classes: Mapping[str, Mapping[Component, Price]]) -> PriceBook:
    return PriceBook(
        version=row["version"],
        currency=row["currency"],
        effective_from_unix_ns=to_unix_ns(row["effective_from"]),
        quantum_nanos=row["charge_quantum_nanos"],
        classes=classes,
        note=row["note"],
    )


def from_unix_ns(unix_ns: int) -> datetime:
    """A moment as Postgres keeps it, to the microsecond, rounded down."""
    return _EPOCH + timedelta(microseconds=unix_ns // 1000)


def to_unix_ns(moment: datetime) -> int:
    """A moment as messages carry it."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
