"""Legal entities and billing details, as rows."""

from __future__ import annotations

import asyncpg
from busbar_errors import Conflict, NotFound

from busbar_billing.adapters.postgres.database import Connections
from busbar_billing.domain.invoicing import BillingDetails, LegalEntity, is_entity_id
from busbar_billing.domain.names import is_tenant_id
from busbar_billing.domain.statements import Tax

_ENTITY = "SELECT * FROM legal_entities WHERE entity_id = $1"
_ENTITIES = "SELECT * FROM legal_entities WHERE entity_id > $1 ORDER BY entity_id LIMIT $2"
_PUT_ENTITY = """
    INSERT INTO legal_entities AS held (
        entity_id, name, number_prefix, address, tax_id, tax_name, tax_ppm, tax_note
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (entity_id) DO UPDATE SET
        name = excluded.name, address = excluded.address, tax_id = excluded.tax_id,
        tax_name = excluded.tax_name, tax_ppm = excluded.tax_ppm, tax_note = excluded.tax_note
    WHERE held.number_prefix = excluded.number_prefix
    RETURNING *
"""
_DETAILS = """
    SELECT
        t.tenant_id, coalesce(d.name, t.name) AS name, coalesce(d.address, '{}') AS address,
        coalesce(d.tax_id, '') AS tax_id, coalesce(d.entity_id, 'default') AS entity_id
    FROM tenants AS t
    LEFT JOIN billing_details AS d USING (tenant_id)
    WHERE t.tenant_id = $1
"""
_PUT_DETAILS = """
    INSERT INTO billing_details AS held (tenant_id, entity_id, name, address, tax_id)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (tenant_id) DO UPDATE SET
        entity_id = CASE WHEN $6 THEN excluded.entity_id ELSE held.entity_id END,
        name = excluded.name, address = excluded.address, tax_id = excluded.tax_id
    RETURNING *
"""


class Invoicing:
    """Where they are kept. What was issued keeps what it said."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def entity(self, entity_id: str) -> LegalEntity:
        """Raise NotFound when there is none."""
        row = None
        if is_entity_id(entity_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_ENTITY, entity_id)
        if row is None:
            raise NotFound(f"there is no legal entity {entity_id[:80]!r}")
        return _read_entity(row)

    async def entities(self, limit: int, after: str) -> list[LegalEntity]:
        """Entities by id, from the first after `after`."""
        async with self._database.connection() as connection:
            return [_read_entity(row) for row in await connection.fetch(_ENTITIES, after, limit)]

    async def put_entity(self, entity: LegalEntity) -> LegalEntity:
        """Make one or change it; raise Conflict when it would number statements differently, or
        like another one."""
        tax = entity.tax
        async with self._database.connection() as connection:
            try:
                row = await connection.fetchrow(
                    _PUT_ENTITY,
                    *(entity.entity_id, entity.name, entity.number_prefix, list(entity.address)),
                    *(entity.tax_id, tax.name, tax.ppm, tax.note),
                )
            except asyncpg.UniqueViolationError as error:
                raise Conflict(f"another entity numbers by {entity.number_prefix}") from error
        if row is None:
            raise Conflict(f"the number prefix of {entity.entity_id} never changes")
        return _read_entity(row)

    async def details(self, tenant_id: str) -> BillingDetails:
        """A tenant's; its name and the default entity where none were given. Raise NotFound."""
        row = None
        if is_tenant_id(tenant_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_DETAILS, tenant_id)
        if row is None:
            raise NotFound(f"there is no tenant {tenant_id[:80]!r}")
        return _read_details(row)

    async def put_details(self, details: BillingDetails, *, change_entity: bool) -> BillingDetails:
        """Keep a tenant's details, and who issues its statements only where that may change; raise
        NotFound when there is no such tenant or entity."""
        values = (details.entity_id, details.name, list(details.address), details.tax_id)
        await self.details(details.tenant_id)
        async with self._database.connection() as connection:
            try:
                row = await connection.fetchrow(
                    _PUT_DETAILS, details.tenant_id, *values, change_entity
                )
            except asyncpg.ForeignKeyViolationError as error:
                raise NotFound(f"there is no legal entity {details.entity_id[:80]!r}") from error
        assert row is not None
        return _read_details(row)


def _read_entity(row: asyncpg.Record) -> LegalEntity:
    return LegalEntity(
        entity_id=row["entity_id"],
        name=row["name"],
        number_prefix=row["number_prefix"],
        address=tuple(row["address"]),
        tax_id=row["tax_id"],
        tax=Tax(row["tax_name"], row["tax_ppm"], row["tax_note"]),
    )


def _read_details(row: asyncpg.Record) -> BillingDetails:
    return BillingDetails(
        tenant_id=row["tenant_id"],
        name=row["name"],
        address=tuple(row["address"]),
        tax_id=row["tax_id"],
        entity_id=row["entity_id"],
    )
