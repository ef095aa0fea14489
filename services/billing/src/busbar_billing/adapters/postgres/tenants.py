"""Tenants and what they hold, as rows."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg
from busbar_errors import Conflict, NotFound

from busbar_billing.adapters.postgres.database import Connections
from busbar_billing.adapters.postgres.journal import open_accounts
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.domain.ledger import Account, AccountKind
from busbar_billing.domain.names import LOOKALIKES, is_tenant_id
from busbar_billing.usecases.tenants import Tenant


@dataclass(frozen=True, slots=True)
class Balance:
    """What a tenant holds, in nanos of its currency."""

    tenant_id: str
    currency: str
    available_nanos: int
    """Outside of leases."""
    held_nanos: int
    """In leases of gateways, not charged yet."""
    owed_nanos: int
    """Charged without having been there."""

    @property
    def balance_nanos(self) -> int:
        """What is left to spend, less what is owed."""
        return self.available_nanos + self.held_nanos - self.owed_nanos


_NAME_INDEX = "tenants_called"
_CALLED = """
    SELECT * FROM tenants WHERE lower(name COLLATE pg_c_utf8) = lower($1 COLLATE pg_c_utf8)
"""
_SEEN = f"translate(lower({{0}} COLLATE pg_c_utf8), '{LOOKALIKES[0]}', '{LOOKALIKES[1]}')"
_MISTAKEN_FOR = f"""
    SELECT tenant_id, name FROM tenants
    WHERE tenant_id <> $1 AND (
        tenant_id = {_SEEN.format("$2")}
        OR {_SEEN.format("name")} IN ({_SEEN.format("$1")}, {_SEEN.format("$2")})
    )
"""  # noqa: S608 - put together from constants
"""Whoever is called as the new one is, as its id is, or has its name for an id, by sight: people
type either, and read names on statements."""
_BALANCE = """
    SELECT
        t.currency,
        coalesce(sum(b.balance_nanos) FILTER (WHERE a.kind = 'tenant_available'), 0) AS available,
        coalesce(sum(b.balance_nanos) FILTER (WHERE a.kind = 'tenant_held'), 0) AS held,
        coalesce(-sum(b.balance_nanos) FILTER (WHERE a.kind = 'tenant_receivable'), 0) AS owed
    FROM tenants AS t
    LEFT JOIN accounts AS a ON a.tenant_id = t.tenant_id AND a.currency = t.currency
    LEFT JOIN account_balances AS b USING (account_id)
    WHERE t.tenant_id = $1
    GROUP BY t.currency
"""


class Tenants:
    """Where tenants are kept."""

    def __init__(self, database: Connections, prices: Prices) -> None:
        self._database = database
        self._prices = prices

    async def add(self, tenant_id: str, name: str, currency: str) -> Tenant:
        """Add one with its account; raise Conflict when the id or the name is taken."""
        async with self._database.transaction() as connection:
            try:
                row = await connection.fetchrow(
                    "INSERT INTO tenants (tenant_id, name, currency) VALUES ($1, $2, $3)"
                    " RETURNING *",
                    tenant_id,
                    name,
                    currency,
                )
            except asyncpg.UniqueViolationError as error:
                taken = tenant_id
                if error.constraint_name == _NAME_INDEX:
                    taken = f"called {name!r}"
                raise Conflict(f"there is a tenant {taken} already") from error
            if other := await connection.fetchrow(_MISTAKEN_FOR, tenant_id, name):
                raise Conflict(
                    f"{tenant_id}, {name!r}, could be taken for the tenant "
                    f"{other['tenant_id']}, {other['name']!r}: choose another id or name"
                )
            account = Account(AccountKind.TENANT_AVAILABLE, tenant_id, currency)
            await open_accounts(connection, [account])
            assert row is not None
            return _read_tenant(row)

    async def get(self, tenant_id: str) -> Tenant:
        """Raise NotFound when there is none."""
        row = None
        if is_tenant_id(tenant_id):
            async with self._database.connection() as connection:
                query = "SELECT * FROM tenants WHERE tenant_id = $1"
                row = await connection.fetchrow(query, tenant_id)
        if row is None:
            raise NotFound(f"there is no tenant {tenant_id[:80]!r}")
        return _read_tenant(row)

    async def called(self, name: str) -> list[Tenant]:
        """The tenant of that name, in capitals or not, if there is one."""
        if "\x00" in name:
            return []
        async with self._database.connection() as connection:
            return [_read_tenant(row) for row in await connection.fetch(_CALLED, name)]

    async def page(self, limit: int, after: str) -> list[Tenant]:
        """Tenants by id, from the first after `after`."""
        async with self._database.connection() as connection:
            query = "SELECT * FROM tenants WHERE tenant_id > $1 ORDER BY tenant_id LIMIT $2"
            return [_read_tenant(row) for row in await connection.fetch(query, after, limit)]

    async def balance(self, tenant_id: str) -> Balance:
        """What a tenant holds; raise NotFound when there is no such tenant."""
        await self.get(tenant_id)
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_BALANCE, tenant_id)
        assert row is not None
        amounts = (int(row[name]) for name in ("available", "held", "owed"))
        return Balance(tenant_id, row["currency"], *amounts)

    async def currencies(self) -> frozenset[str]:
        """Currencies with a price book."""
        return (await self._prices.all()).currencies


def _read_tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(row["tenant_id"], row["name"], row["currency"], row["created_at"])
