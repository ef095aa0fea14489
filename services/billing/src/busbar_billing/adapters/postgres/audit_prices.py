"""The price book as the auditor reads it: as it stands, not as billing remembers it."""

from __future__ import annotations

from busbar_billing.adapters.postgres.database import Database
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain.audit.price_rows import RepeatedPrice
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


class AuditedPrices:
    """Reads the price book anew for whoever shares `prices`."""

    def __init__(self, database: Database, prices: Prices) -> None:
        self._database = database
        self._prices = prices

    async def read_again(self) -> PricesFound:
        """The book as it stands now; what is rated from now on is rated by it."""
        async with self._database.as_auditor() as connection:
            books = await self._prices.read_again(connection)
            rows = await connection.fetch(_REPEATED, _LISTED_MAX)
        return PricesFound(books, [RepeatedPrice(*row) for row in rows])
