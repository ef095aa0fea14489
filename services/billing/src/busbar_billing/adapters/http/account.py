"""The customers' API: a tenant's usage, money, projects and keys, and nothing of anybody else's.

The tenant is always that of the key that was presented, never one that a path or a body names; what
belongs to another tenant does not exist.
"""

from __future__ import annotations

from typing import Annotated

from busbar_errors import NotFound, Rejected
from fastapi import APIRouter, Depends
from pydantic import AwareDatetime

from busbar_billing.adapters.http import schemas, tenancy_schemas
from busbar_billing.adapters.http.account_gate import calling_tenant
from busbar_billing.adapters.http.account_schemas import (
    AccountTransferAnswer,
    AccountUsageAnswer,
    show_own_transfer,
    show_own_usage,
)
from busbar_billing.adapters.http.keys import (
    Prefix,
    ProjectFilter,
    create_for,
    rotate_for,
    show_change,
)
from busbar_billing.adapters.http.ledger import RequestFilter
from busbar_billing.adapters.http.paging import (
    PAGE_DEFAULT,
    Cursor,
    Limit,
    decode_cursor,
    decode_id_cursor,
    first_id_of,
    page,
    read_request_id,
)
from busbar_billing.adapters.http.payments import (
    Checkout,
    CheckoutAnswer,
    WantedCheckout,
    start_checkout,
)
from busbar_billing.adapters.http.plans import terms_answer
from busbar_billing.adapters.http.projects import create_project, projects_page
from busbar_billing.adapters.http.showing import show_balance, show_key, show_tenant
from busbar_billing.adapters.http.tenancy_schemas import show_project
from busbar_billing.adapters.postgres.budgets import Budgets
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.plans import Plans
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.adapters.postgres.reading import FIRST_ID, LAST_ID, Reader
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.usecases.keys import KeyDesk, revoke_key

CallingTenant = Annotated[str, Depends(calling_tenant)]
PREFIX = "/account/v1"


def tenant_routes(tenants: Tenants, plans: Plans, budgets: Budgets) -> APIRouter:
    """GET /tenant, /balance and /terms."""
    router = APIRouter(prefix=PREFIX, tags=["tenant"])

    @router.get("/tenant")
    async def get(tenant_id: CallingTenant) -> schemas.TenantAnswer:
        return show_tenant(await tenants.get(tenant_id))

    @router.get("/balance")
    async def balance(tenant_id: CallingTenant) -> schemas.BalanceAnswer:
        return show_balance(await tenants.balance(tenant_id))

    @router.get("/terms")
    async def terms(tenant_id: CallingTenant) -> tenancy_schemas.TermsAnswer:
        return await terms_answer(plans, budgets, tenant_id)

    return router


def money_routes(reader: Reader) -> APIRouter:
    """GET /usage, /usage/{request_id} and /ledger, newest first."""
    router = APIRouter(prefix=PREFIX, tags=["ledger"])

    @router.get("/usage")
    async def usage(
        tenant_id: CallingTenant,
        since: AwareDatetime | None = None,
        until: AwareDatetime | None = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[AccountUsageAnswer]:
        first = FIRST_ID if since is None else first_id_of(since)
        last = LAST_ID if until is None else first_id_of(until)
        before = min(last, decode_id_cursor(cursor, last))
        rows = await reader.usage(tenant_id, first, before, limit + 1)
        return page(rows, limit, lambda row: str(row.record.request_id), show_own_usage)

    @router.get("/usage/{request_id}")
    async def usage_of(tenant_id: CallingTenant, request_id: str) -> AccountUsageAnswer:
        try:
            posted = await reader.usage_of(read_request_id(request_id))
        except Rejected as error:
            raise NotFound(f"no usage is posted for request {request_id[:80]!r}") from error
        if posted.record.tenant_id != tenant_id:
            raise NotFound(f"no usage is posted for request {request_id[:80]!r}")
        return show_own_usage(posted)

    @router.get("/ledger")
    async def ledger(
        tenant_id: CallingTenant,
        request_id: RequestFilter = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[AccountTransferAnswer]:
        request = None if request_id is None else read_request_id(request_id)
        before = decode_id_cursor(cursor, LAST_ID)
        rows = await reader.transfers(tenant_id, request, before, limit + 1)
        return page(rows, limit, lambda row: str(row.transfer.transfer_id), show_own_transfer)

    return router


def project_routes(projects: Projects) -> APIRouter:
    """POST, GET /projects; GET, DELETE /projects/{id}."""
    router = APIRouter(prefix=PREFIX, tags=["projects"])

    @router.post("/projects", status_code=201)
    async def create(
        tenant_id: CallingTenant, wanted: tenancy_schemas.WantedProject
    ) -> tenancy_schemas.ProjectAnswer:
        return await create_project(projects, tenant_id, wanted)

    @router.get("/projects")
    async def list_all(
        tenant_id: CallingTenant, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[tenancy_schemas.ProjectAnswer]:
        return await projects_page(projects, tenant_id, limit, cursor)

    @router.get("/projects/{project_id}")
    async def get(tenant_id: CallingTenant, project_id: str) -> tenancy_schemas.ProjectAnswer:
        return show_project(await projects.get(project_id, tenant_id))

    @router.delete("/projects/{project_id}")
    async def archive(tenant_id: CallingTenant, project_id: str) -> tenancy_schemas.ProjectAnswer:
        return show_project(await projects.archive(project_id, tenant_id))

    return router


def checkout_routes(tenants: Tenants, checkout: Checkout | None) -> APIRouter:
    """POST /checkouts: a page where the tenant pays."""
    router = APIRouter(prefix=PREFIX, tags=["payments"])

    @router.post("/checkouts", status_code=201)
    async def start(tenant_id: CallingTenant, wanted: WantedCheckout) -> CheckoutAnswer:
        return await start_checkout(checkout, tenants, tenant_id, wanted)

    return router


def key_routes(keys: Keys, projects: Projects, desk: KeyDesk) -> APIRouter:
    """POST, GET /keys; GET, DELETE /keys/{id}; POST /keys/{id}/rotate."""
    router = APIRouter(prefix=PREFIX, tags=["keys"])

    @router.post("/keys", status_code=201)
    async def create(tenant_id: CallingTenant, wanted: schemas.WantedKey) -> schemas.NewKeyAnswer:
        return await create_for(desk, tenant_id, wanted)

    @router.get("/keys")
    async def list_all(
        tenant_id: CallingTenant,
        prefix: Prefix | None = None,
        project_id: ProjectFilter = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[schemas.KeyAnswer]:
        after = decode_cursor(cursor, "")
        if project_id is not None:
            await projects.get(project_id, tenant_id)
        if prefix is None:
            rows = await keys.of_tenant(tenant_id, limit + 1, after, project_id)
        else:
            found = await keys.by_prefix(prefix, tenant_id)
            rows = [row for row in found if project_id in (None, row.key.project_id)]
            rows = [row for row in rows if row.key.key_id > after][: limit + 1]
        return page(rows, limit, lambda row: row.key.key_id, show_key)

    @router.get("/keys/{key_id}")
    async def get(tenant_id: CallingTenant, key_id: str) -> schemas.KeyAnswer:
        return show_key(await keys.get(key_id, tenant_id))

    @router.post("/keys/{key_id}/rotate")
    async def rotate(
        tenant_id: CallingTenant, key_id: str, wanted: schemas.WantedRotation
    ) -> schemas.NewKeyAnswer:
        return await rotate_for(desk, key_id, tenant_id, wanted)

    @router.delete("/keys/{key_id}")
    async def revoke(tenant_id: CallingTenant, key_id: str) -> schemas.ChangedKeyAnswer:
        return show_change(await revoke_key(desk, key_id, tenant_id=tenant_id))

    return router
