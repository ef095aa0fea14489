"""Plans and the terms of tenants, as rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import asdict

import asyncpg
from busbar_errors import Conflict, NotFound

from busbar_billing.adapters.postgres.database import Connection, Connections
from busbar_billing.domain.names import is_plan_id, is_tenant_id
from busbar_billing.domain.plans import (
    NO_LIMITS,
    Band,
    BudgetKind,
    Limits,
    Overrides,
    Plan,
    Terms,
    effective,
)

PAGE_ROWS = 500
_COLUMNS = (
    "requests_per_minute",
    "tokens_per_minute",
    "max_in_flight",
    "monthly_budget_nanos",
    "budget_kind",
    "band",
    "weight",
)

_PUT_PLAN = """
    INSERT INTO plans (
        plan_id, name, requests_per_minute, tokens_per_minute, max_in_flight,
        monthly_budget_nanos, budget_kind, band, weight
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (plan_id) DO UPDATE SET
        name = excluded.name,
        requests_per_minute = excluded.requests_per_minute,
        tokens_per_minute = excluded.tokens_per_minute,
        max_in_flight = excluded.max_in_flight,
        monthly_budget_nanos = excluded.monthly_budget_nanos,
        budget_kind = excluded.budget_kind,
        band = excluded.band,
        weight = excluded.weight,
        changed_at = now()
"""
_TERMS = """
    SELECT
        t.tenant_id, t.currency, o.plan_id, coalesce(o.suspended_reason, '') AS suspended_reason,
        p.plan_id IS NOT NULL AS planned,
        o.requests_per_minute, o.tokens_per_minute, o.max_in_flight, o.monthly_budget_nanos,
        o.budget_kind, o.band, o.weight,
        p.requests_per_minute AS plan_requests_per_minute,
        p.tokens_per_minute AS plan_tokens_per_minute,
        p.max_in_flight AS plan_max_in_flight,
        p.monthly_budget_nanos AS plan_monthly_budget_nanos,
        p.budget_kind AS plan_budget_kind,
        p.band AS plan_band,
        p.weight AS plan_weight
    FROM tenants AS t
    LEFT JOIN tenant_terms AS o USING (tenant_id)
    LEFT JOIN plans AS p ON p.plan_id = o.plan_id
"""
_TERMS_OF = _TERMS + " WHERE t.tenant_id = ANY($1::text[])"
_TERMS_PAGE = _TERMS + " WHERE t.tenant_id > $1 ORDER BY t.tenant_id LIMIT $2"
_SET_TERMS = """
    INSERT INTO tenant_terms (
        tenant_id, plan_id, requests_per_minute, tokens_per_minute, max_in_flight,
        monthly_budget_nanos, budget_kind, band, weight
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (tenant_id) DO UPDATE SET
        plan_id = excluded.plan_id,
        requests_per_minute = excluded.requests_per_minute,
        tokens_per_minute = excluded.tokens_per_minute,
        max_in_flight = excluded.max_in_flight,
        monthly_budget_nanos = excluded.monthly_budget_nanos,
        budget_kind = excluded.budget_kind,
        band = excluded.band,
        weight = excluded.weight,
        changed_at = now()
"""
_SUSPEND = """
    INSERT INTO tenant_terms (tenant_id, suspended_reason) VALUES ($1, $2)
    ON CONFLICT (tenant_id)
    DO UPDATE SET suspended_reason = excluded.suspended_reason, changed_at = now()
"""


class Plans:
    """Where plans and terms are kept."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def put(self, plan: Plan) -> None:
        """Make a plan, or change the one of that id."""
        async with self._database.connection() as connection:
            await connection.execute(
                _PUT_PLAN, plan.plan_id, plan.name, *asdict(plan.limits).values()
            )

    async def get(self, plan_id: str) -> Plan:
        """Raise NotFound when there is none."""
        row = None
        if is_plan_id(plan_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow("SELECT * FROM plans WHERE plan_id = $1", plan_id)
        if row is None:
            raise NotFound(f"there is no plan {plan_id[:80]!r}")
        return _read_plan(row)

    async def page(self, limit: int, after: str) -> list[Plan]:
        """Plans by id, from the first after `after`."""
        async with self._database.connection() as connection:
            query = "SELECT * FROM plans WHERE plan_id > $1 ORDER BY plan_id LIMIT $2"
            return [_read_plan(row) for row in await connection.fetch(query, after, limit)]

    async def delete(self, plan_id: str) -> None:
        """Raise NotFound when there is none, Conflict while tenants have it."""
        await self.get(plan_id)
        async with self._database.connection() as connection:
            try:
                await connection.execute("DELETE FROM plans WHERE plan_id = $1", plan_id)
            except asyncpg.ForeignKeyViolationError as error:
                raise Conflict(
                    f"tenants have plan {plan_id}: give them another one first"
                ) from error

    async def tenants_of(self, plan_id: str) -> list[str]:
        """Who has the plan."""
        async with self._database.connection() as connection:
            query = "SELECT tenant_id FROM tenant_terms WHERE plan_id = $1"
            return [row["tenant_id"] for row in await connection.fetch(query, plan_id)]

    async def terms(self, tenant_id: str) -> Terms:
        """What holds for a tenant; raise NotFound when there is no such tenant."""
        found = await self.terms_of([tenant_id])
        if not found:
            raise NotFound(f"there is no tenant {tenant_id[:80]!r}")
        return found[0]

    async def terms_of(self, tenant_ids: Collection[str]) -> list[Terms]:
        """What holds for these tenants, as far as they exist."""
        possible = [tenant_id for tenant_id in tenant_ids if is_tenant_id(tenant_id)]
        async with self._database.connection() as connection:
            return await read_terms(connection, possible)

    async def all_terms(self) -> AsyncIterator[list[Terms]]:
        """What holds for every tenant, page by page."""
        after = ""
        while True:
            async with self._database.connection() as connection:
                rows = await connection.fetch(_TERMS_PAGE, after, PAGE_ROWS)
            if not rows:
                return
            yield [_read_terms(row) for row in rows]
            after = rows[-1]["tenant_id"]

    async def set_terms(self, tenant_id: str, plan_id: str | None, overrides: Overrides) -> None:
        """Raise NotFound when there is no such tenant or no such plan."""
        await self.terms(tenant_id)
        values = asdict(overrides).values()
        async with self._database.connection() as connection:
            try:
                await connection.execute(_SET_TERMS, tenant_id, plan_id, *values)
            except asyncpg.ForeignKeyViolationError as error:
                raise NotFound(f"there is no plan {str(plan_id)[:80]!r}") from error

    async def suspend(self, tenant_id: str, reason: str) -> None:
        """Suspend a tenant, or resume it when `reason` is empty; raise NotFound."""
        await self.terms(tenant_id)
        async with self._database.connection() as connection:
            await connection.execute(_SUSPEND, tenant_id, reason)


async def read_terms(connection: Connection, tenant_ids: Collection[str]) -> list[Terms]:
    """What holds for these tenants, inside a transaction of the caller's."""
    return [_read_terms(row) for row in await connection.fetch(_TERMS_OF, list(tenant_ids))]


def _read_plan(row: asyncpg.Record) -> Plan:
    return Plan(row["plan_id"], row["name"], _read_limits(row, ""))


def _read_limits(row: asyncpg.Record, prefix: str) -> Limits:
    values = {column: row[prefix + column] for column in _COLUMNS}
    values["budget_kind"] = BudgetKind(values["budget_kind"])
    values["band"] = Band(values["band"])
    return Limits(**values)


def _read_terms(row: asyncpg.Record) -> Terms:
    values = {column: row[column] for column in _COLUMNS}
    values["budget_kind"] = BudgetKind(values["budget_kind"]) if values["budget_kind"] else None
    values["band"] = Band(values["band"]) if values["band"] else None
    overrides = Overrides(**values)
    plan = _read_limits(row, "plan_") if row["planned"] else NO_LIMITS
    return Terms(
        tenant_id=row["tenant_id"],
        currency=row["currency"],
        plan_id=row["plan_id"],
        overrides=overrides,
        limits=effective(plan, overrides),
        suspended_reason=row["suspended_reason"],
    )
