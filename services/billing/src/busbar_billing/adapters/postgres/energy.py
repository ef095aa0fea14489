"""What energy costs at each site, as rows."""

from __future__ import annotations

from collections.abc import Collection

import asyncpg
from busbar_errors import Conflict

from busbar_billing.adapters.postgres.database import Connection, Database
from busbar_billing.adapters.postgres.prices import from_unix_ns, to_unix_ns
from busbar_billing.domain.energy import EnergyPrice

_OF_SITES = "SELECT * FROM energy_prices WHERE site = ANY($1::text[])"
_ADD = """
    INSERT INTO energy_prices (site, effective_from, currency, kwh_nanos) VALUES ($1, $2, $3, $4)
"""
_NEWEST = """
    SELECT * FROM energy_prices ORDER BY effective_from DESC, site LIMIT $1
"""


class EnergyPrices:
    """Every price of every site; they never change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, price: EnergyPrice) -> None:
        """Add one; raise Conflict when the site has one from the same moment."""
        try:
            async with self._database.transaction() as connection:
                await connection.execute(
                    _ADD,
                    price.site,
                    from_unix_ns(price.effective_from_unix_ns),
                    price.currency,
                    price.kwh_nanos,
                )
        except asyncpg.UniqueViolationError as error:
            raise Conflict(f"{price.site} has a price from the same moment") from error

    async def newest(self, limit: int) -> list[EnergyPrice]:
        """The latest to begin first."""
        async with self._database.connection() as connection:
            return [_read(row) for row in await connection.fetch(_NEWEST, limit)]


async def energy_prices(connection: Connection, sites: Collection[str]) -> list[EnergyPrice]:
    """Every price of these sites."""
    return [_read(row) for row in await connection.fetch(_OF_SITES, list(sites))]


def _read(row: asyncpg.Record) -> EnergyPrice:
    return EnergyPrice(
        row["site"], to_unix_ns(row["effective_from"]), row["currency"], row["kwh_nanos"]
    )
