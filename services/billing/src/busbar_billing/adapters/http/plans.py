"""Routes of plans, and of what each tenant may do."""

from __future__ import annotations

from fastapi import APIRouter

from busbar_billing.adapters.bus.credit_leases import Recalls
from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.bus.policy_directory import PolicyDirectory
from busbar_billing.adapters.http import tenancy_schemas as schemas
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.schemas import Page
from busbar_billing.adapters.http.tenancy_schemas import show_plan, show_terms
from busbar_billing.adapters.postgres.budgets import Budgets
from busbar_billing.adapters.postgres.plans import Plans
from busbar_billing.usecases.plans import ChangedTerms, put_plan, resume, set_terms, suspend


def plan_routes(plans: Plans, policies: PolicyDirectory, recalls: Recalls) -> APIRouter:
    """GET /plans; PUT, GET, DELETE /plans/{id}."""
    router = APIRouter(prefix="/admin/v1/plans", tags=["plans"])

    @router.get("")
    async def list_all(
        limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> Page[schemas.PlanAnswer]:
        """List the plans."""
        rows = await plans.page(limit + 1, decode_cursor(cursor, ""))
        return page(rows, limit, lambda row: row.plan_id, show_plan)

    @router.put("/{plan_id}")
    async def put(plan_id: str, wanted: schemas.WantedPlan) -> schemas.ChangedPlanAnswer:
        """Create or change a plan."""
        plan, propagated = await put_plan(plans, policies, recalls, wanted.plan(plan_id))
        return schemas.ChangedPlanAnswer(**show_plan(plan).model_dump(), propagated=propagated)

    @router.get("/{plan_id}")
    async def get(plan_id: str) -> schemas.PlanAnswer:
        """Read one plan."""
        return show_plan(await plans.get(plan_id))

    @router.delete("/{plan_id}", status_code=204)
    async def delete(plan_id: str) -> None:
        """Delete a plan that no tenant has."""
        await plans.delete(plan_id)

    return router


def terms_routes(
    plans: Plans, budgets: Budgets, policies: PolicyDirectory, recalls: Recalls, events: Events
) -> APIRouter:
    """GET, PUT /tenants/{id}/terms; POST /tenants/{id}/suspend and /resume."""
    router = APIRouter(prefix="/admin/v1/tenants/{tenant_id}", tags=["plans"])

    @router.get("/terms")
    async def get(tenant_id: str) -> schemas.TermsAnswer:
        """Read a tenant's plan and what differs for it."""
        return await terms_answer(plans, budgets, tenant_id)

    @router.put("/terms")
    async def put(tenant_id: str, wanted: schemas.WantedTerms) -> schemas.ChangedTermsAnswer:
        """Give a tenant a plan and what differs for it."""
        overrides = wanted.domain_overrides()
        return await show(
            await set_terms(plans, policies, tenant_id, wanted.plan_id, overrides, recalls=recalls)
        )

    @router.post("/suspend")
    async def suspend_tenant(
        tenant_id: str, wanted: schemas.WantedSuspension
    ) -> schemas.ChangedTermsAnswer:
        """Suspend a tenant: its keys are refused."""
        return await show(await suspend(plans, policies, events, tenant_id, wanted.reason))

    @router.post("/resume")
    async def resume_tenant(tenant_id: str) -> schemas.ChangedTermsAnswer:
        """Let a suspended tenant go on."""
        return await show(await resume(plans, policies, events, tenant_id))

    async def show(changed: ChangedTerms) -> schemas.ChangedTermsAnswer:
        budget = await budgets.of_tenant(changed.terms.tenant_id)
        shown = show_terms(changed.terms, budget).model_dump()
        return schemas.ChangedTermsAnswer(**shown, propagated=changed.propagated)

    return router


async def terms_answer(plans: Plans, budgets: Budgets, tenant_id: str) -> schemas.TermsAnswer:
    """What holds for a tenant; raises NotFound."""
    terms = await plans.terms(tenant_id)
    return show_terms(terms, await budgets.of_tenant(tenant_id))
