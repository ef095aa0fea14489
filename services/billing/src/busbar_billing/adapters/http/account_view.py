"""What the customers' API reads: the calling tenant's view of the database, nothing beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from fastapi import Depends, Request

from busbar_billing.adapters.http.account_gate import calling_deployments, calling_tenant
from busbar_billing.adapters.postgres.budgets import Budgets
from busbar_billing.adapters.postgres.database import Database
from busbar_billing.adapters.postgres.invoicing import Invoicing
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.own_ledger import OwnLedger
from busbar_billing.adapters.postgres.plans import Plans
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.adapters.postgres.reading import Reader
from busbar_billing.adapters.postgres.rollups import Rollups
from busbar_billing.adapters.postgres.statements import Statements
from busbar_billing.adapters.postgres.tenants import Tenants


@dataclass(frozen=True, slots=True)
class AccountView:
    """Reads for one tenant. Row-level security holds for each read, whatever a query forgets."""

    tenants: Tenants
    plans: Plans
    budgets: Budgets
    projects: Projects
    keys: Keys
    reader: Reader
    ledger: OwnLedger
    rollups: Rollups
    statements: Statements
    invoicing: Invoicing
    prices: Prices


OpensViews: TypeAlias = Callable[[str], AccountView]


def opens_views(database: Database, journal: Journal, prices: Prices) -> OpensViews:
    """How to open the view of a tenant."""

    def open_view(tenant_id: str) -> AccountView:
        view = database.seen_by(tenant_id)
        return AccountView(
            tenants=Tenants(view, prices),
            plans=Plans(view),
            budgets=Budgets(view),
            projects=Projects(view),
            keys=Keys(view),
            reader=Reader(view),
            ledger=OwnLedger(view),
            rollups=Rollups(view),
            statements=Statements(view, journal, prices),
            invoicing=Invoicing(view),
            prices=prices,
        )

    return open_view


def _calling_view(request: Request) -> AccountView:
    open_view: OpensViews = request.app.state.open_view
    return open_view(calling_tenant(request))


CallingDeployments = Annotated[tuple[str, ...], Depends(calling_deployments)]
CallingTenant = Annotated[str, Depends(calling_tenant)]
Own = Annotated[AccountView, Depends(_calling_view)]
