"""Routes of tenants: who they are, what they hold, what they paid in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from uuid_utils.compat import uuid7

from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.bus.policy_directory import PolicyDirectory
from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.showing import show_balance, show_tenant, show_transfer
from busbar_billing.adapters.postgres.journal import Journal
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.names import NAME_MAX
from busbar_billing.usecases.tenants import create_tenant, top_up

NameFilter = Annotated[str | None, Query(max_length=NAME_MAX)]


def tenant_routes(
    tenants: Tenants, journal: Journal, policies: PolicyDirectory, events: Events
) -> APIRouter:
    """POST, GET /tenants; GET /tenants/{id}; its balance and top-ups."""
    router = APIRouter(prefix="/admin/v1/tenants", tags=["tenants"])

    @router.post("", status_code=201)
    async def create(wanted: schemas.WantedTenant) -> schemas.TenantAnswer:
        """Create a tenant."""
        tenant = await create_tenant(
            tenants,
            policies,
            events,
            tenant_id=wanted.tenant_id or f"ten_{uuid7().hex}",
            name=wanted.name,
            currency=wanted.currency,
        )
        return show_tenant(tenant)

    @router.get("")
    async def list_all(
        name: NameFilter = None, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[schemas.TenantAnswer]:
        """List the tenants."""
        if name is not None:
            called = await tenants.called(name)
            return schemas.Page(items=[show_tenant(one) for one in called], next_cursor=None)
        rows = await tenants.page(limit + 1, decode_cursor(cursor, ""))
        return page(rows, limit, lambda row: row.tenant_id, show_tenant)

    @router.get("/{tenant_id}")
    async def get(tenant_id: str) -> schemas.TenantAnswer:
        """Read one tenant."""
        return show_tenant(await tenants.get(tenant_id))

    @router.get("/{tenant_id}/balance")
    async def balance(tenant_id: str) -> schemas.BalanceAnswer:
        """Read a tenant's balance."""
        return show_balance(await tenants.balance(tenant_id))

    @router.post(
        "/{tenant_id}/topups",
        status_code=201,
        responses={200: {"model": schemas.TransferAnswer, "description": "Posted before."}},
    )
    async def add_money(
        tenant_id: str, wanted: schemas.WantedTopUp, response: Response
    ) -> schemas.TransferAnswer:
        """Pay money in for a tenant."""
        posted = await top_up(
            tenants,
            journal,
            transfer_id=uuid7(),
            tenant_id=tenant_id,
            amount_nanos=wanted.amount_nanos,
            currency=wanted.currency,
            reference=wanted.reference,
        )
        response.status_code = 200 if posted.repeated else 201
        return show_transfer(posted)

    return router
