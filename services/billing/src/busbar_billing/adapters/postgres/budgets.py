"""The month's spending against the month's budget, as rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from busbar_billing.adapters.postgres.database import Connection, Connections
from busbar_billing.adapters.postgres.outbox import put_notices
from busbar_billing.adapters.postgres.plans import read_terms
from busbar_billing.domain.plans import (
    ALERT_PERCENTS,
    Budget,
    end_of_month_unix_ms,
    percents_reached,
)
from busbar_billing.domain.webhooks import EventType, Notice

_SPENT = """
    SELECT tenant_id, spent_nanos
    FROM tenant_months
    WHERE tenant_id = ANY($1::text[]) AND month = month_of(now())
"""
_NOW_MS = "SELECT (extract(EPOCH FROM now()) * 1000)::bigint"
_NEAR_BUDGET = """
    SELECT
        t.tenant_id, t.currency, m.month, m.spent_nanos,
        coalesce(o.monthly_budget_nanos, p.monthly_budget_nanos) AS budget_nanos,
        coalesce(o.budget_kind, p.budget_kind, 'hard') = 'hard' AS hard
    FROM tenant_terms AS o
    INNER JOIN tenants AS t USING (tenant_id)
    LEFT JOIN plans AS p ON p.plan_id = o.plan_id
    INNER JOIN tenant_months AS m ON m.tenant_id = o.tenant_id AND m.month = month_of(now())
    WHERE coalesce(o.monthly_budget_nanos, p.monthly_budget_nanos) > 0
    AND m.spent_nanos * 100 >= coalesce(o.monthly_budget_nanos, p.monthly_budget_nanos) * $1
"""
_ALERT = """
    INSERT INTO budget_alerts (tenant_id, month, percent, budget_nanos)
    SELECT i.tenant_id, month_of(now()), i.percent, i.budget_nanos
    FROM unnest($1::text[], $2::int2[], $3::int8[]) AS i (tenant_id, percent, budget_nanos)
    ON CONFLICT DO NOTHING
    RETURNING tenant_id, percent, budget_nanos
"""


@dataclass(frozen=True, slots=True)
class BudgetAlert:
    """A tenant has spent this share of its monthly budget."""

    tenant_id: str
    percent: int
    budget_nanos: int
    spent_nanos: int
    currency: str
    hard: bool


async def budgets(connection: Connection, tenant_ids: Collection[str]) -> Mapping[str, Budget]:
    """Where these tenants stand this month, as far as they exist; in the caller's transaction.

    Two look-ups by primary key; says what is left of a hard budget and who is suspended.
    """
    terms = await read_terms(connection, tenant_ids)
    rows = await connection.fetch(_SPENT, list(tenant_ids))
    spent = {row["tenant_id"]: int(row["spent_nanos"]) for row in rows}
    ends_unix_ms = end_of_month_unix_ms(await connection.fetchval(_NOW_MS))
    return {
        one.tenant_id: Budget(
            spent_nanos=spent.get(one.tenant_id, 0),
            monthly_budget_nanos=one.limits.monthly_budget_nanos,
            kind=one.limits.budget_kind,
            suspended_reason=one.suspended_reason,
            ends_unix_ms=ends_unix_ms,
        )
        for one in terms
    }


async def budget_left(connection: Connection, tenant_id: str) -> int | None:
    """What the month's hard budget leaves one tenant; None where nothing stops it."""
    found = await budgets(connection, [tenant_id])
    return found[tenant_id].left_nanos if tenant_id in found else None


class Budgets:
    """Looks after budgets outside of any posting."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def of_tenant(self, tenant_id: str) -> Budget:
        """Where a tenant that exists stands."""
        async with self._database.connection() as connection:
            return (await budgets(connection, [tenant_id]))[tenant_id]

    async def new_alerts(self) -> list[BudgetAlert]:
        """Shares of budgets reached since this was last asked; each is returned once."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(_NEAR_BUDGET, min(ALERT_PERCENTS))
            reached = {
                (row["tenant_id"], percent, row["budget_nanos"]): BudgetAlert(
                    tenant_id=row["tenant_id"],
                    percent=percent,
                    budget_nanos=row["budget_nanos"],
                    spent_nanos=int(row["spent_nanos"]),
                    currency=row["currency"],
                    hard=row["hard"],
                )
                for row in rows
                for percent in percents_reached(int(row["spent_nanos"]), row["budget_nanos"])
            }
            if not reached:
                return []
            columns = [list(column) for column in zip(*reached, strict=True)]
            new = await connection.fetch(_ALERT, *columns)
            alerts = [reached[row["tenant_id"], row["percent"], row["budget_nanos"]] for row in new]
            await put_notices(connection, [_notice(alert) for alert in alerts])
        return alerts


def _notice(alert: BudgetAlert) -> Notice:
    return Notice(alert.tenant_id, EventType.BUDGET_REACHED, asdict(alert))
