"""The price book as the auditor reads it: as it stands, not as billing remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import asyncpg

from busbar_billing.adapters.postgres.database import Database
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.warrants import PRICES_SINCE
from busbar_billing.domain.audit.price_rows import (
    RepeatedPrice,
    UnlikePublished,
    unlike_published,
)
from busbar_billing.domain.prices import PriceBooks
from busbar_billing.domain.warrants import is_vouched, prices_say, prices_subject
from busbar_billing.usecases.audit import PricesFound

_LISTED_MAX = 1_000
_REPEATED = """
    SELECT version, price_class, component, count(*) AS rows FROM prices
    GROUP BY 1, 2, 3 HAVING count(*) > 1
    UNION ALL
    SELECT version, price_class, component, count(*) AS rows FROM price_tiers
    GROUP BY version, price_class, component, above_units HAVING count(*) > 1
    LIMIT $1
"""
# Of what is gone the warrant is left.
_PUBLISHED = f"""
    SELECT
        coalesce(b.version, v.version) AS version, b.version IS NOT NULL AS kept, v.digest,
        coalesce(b.created_at >= {PRICES_SINCE}, FALSE) AS needed
    FROM price_books AS b
    FULL JOIN (
        SELECT n.version, w.digest
        FROM generate_series(1, (SELECT last_value FROM price_books_version_seq)) AS n (version)
        INNER JOIN warrants AS w ON w.subject = 'price book ' || n.version
    ) AS v ON v.version = b.version
    WHERE v.digest IS NOT NULL OR b.created_at >= {PRICES_SINCE}
    ORDER BY version
"""  # noqa: S608


class AuditedPrices:
    """Reads the price book anew for whoever shares `prices`."""

    def __init__(self, database: Database, prices: Prices, warrant_key: bytes) -> None:
        self._database = database
        self._prices = prices
        self._warrant_key = warrant_key

    async def read_again(self) -> PricesFound:
        """The book as it stands now; what is rated from now on is rated by it."""
        async with self._database.as_auditor() as connection:
            books = await self._prices.read_again(connection)
            rows = await connection.fetch(_REPEATED, _LISTED_MAX)
            published = await connection.fetch(_PUBLISHED)
        unlike = list(self._unlike(published, books))
        return PricesFound(books, [RepeatedPrice(*row) for row in rows], len(published), unlike)

    def _unlike(
        self, published: Sequence[asyncpg.Record], books: PriceBooks
    ) -> Iterable[UnlikePublished]:
        """Versions that are not as billing published them."""
        known = {book.version: book for book in books.newest_first}
        for row in published:
            version = row["version"]
            book = known.get(version)
            detail = unlike_published(
                kept=book is not None,
                warranted=row["digest"] is not None,
                fits=book is not None
                and is_vouched(
                    self._warrant_key, prices_subject(version), prices_say(book), row["digest"]
                ),
                needed=row["needed"],
            )
            if detail:
                yield UnlikePublished(version, detail)
