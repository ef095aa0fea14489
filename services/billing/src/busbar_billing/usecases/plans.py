"""Plans, what each tenant may do, and suspensions: in the database first, then at every gateway."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from busbar_billing.domain.names import checked_name, checked_plan_id, checked_suspension
from busbar_billing.domain.plans import Overrides, Plan, Terms, check_bounds


class PlanStore(Protocol):
    """Where plans and terms are kept."""

    async def put(self, plan: Plan) -> None:
        """Make a plan, or change the one of that id."""
        ...

    async def tenants_of(self, plan_id: str) -> list[str]:
        """Who has the plan."""
        ...

    async def terms(self, tenant_id: str) -> Terms:
        """What holds for a tenant; raise NotFound."""
        ...

    async def set_terms(self, tenant_id: str, plan_id: str | None, overrides: Overrides) -> None:
        """Raise NotFound when there is no such tenant or no such plan."""
        ...

    async def suspend(self, tenant_id: str, reason: str) -> None:
        """Suspend a tenant, or resume it when `reason` is empty; raise NotFound."""
        ...


class PolicyDirectory(Protocol):
    """What the gateways watch."""

    async def refresh(self, tenant_ids: Collection[str]) -> bool:
        """Tell the gateways what the database says of these; False when the bus is away."""
        ...


class Recalls(Protocol):
    """Who lends on a budget."""

    async def recall(self, tenant_ids: Sequence[str]) -> None:
        """Have what is lent to these tenants and not used given back: it was lent by the budget
        that they had."""
        ...


class TermsEvents(Protocol):
    """What the others are told."""

    def tenant_suspended(self, tenant_id: str, reason: str) -> None:
        """Nothing of the tenant is served any more."""
        ...

    def tenant_resumed(self, tenant_id: str) -> None:
        """The tenant is served again."""
        ...


@dataclass(frozen=True, slots=True)
class ChangedTerms:
    """Terms after a change. `propagated`: gateways have been told; if not they are within seconds
    of the bus being back."""

    terms: Terms
    propagated: bool


async def put_plan(
    store: PlanStore, directory: PolicyDirectory, recalls: Recalls, plan: Plan
) -> tuple[Plan, bool]:
    """Make or change a plan; tells whether the gateways know what it means for its tenants."""
    checked_plan_id(plan.plan_id)
    check_bounds(plan.limits)
    named = replace(plan, name=checked_name(plan.name))
    await store.put(named)
    tenant_ids = await store.tenants_of(plan.plan_id)
    propagated = await directory.refresh(tenant_ids)
    if plan.limits.monthly_budget_nanos:
        await recalls.recall(tenant_ids)
    return named, propagated


async def set_terms(
    store: PlanStore,
    directory: PolicyDirectory,
    tenant_id: str,
    plan_id: str | None,
    overrides: Overrides,
    *,
    recalls: Recalls,
) -> ChangedTerms:
    """Give a tenant a plan, or none, and what differs from it."""
    check_bounds(overrides)
    await store.set_terms(tenant_id, plan_id, overrides)
    propagated = await directory.refresh([tenant_id])
    terms = await store.terms(tenant_id)
    if terms.limits.monthly_budget_nanos:
        await recalls.recall([tenant_id])
    return ChangedTerms(terms, propagated)


async def suspend(
    store: PlanStore, directory: PolicyDirectory, events: TermsEvents, tenant_id: str, reason: str
) -> ChangedTerms:
    """Serve nothing of a tenant until it is resumed; `reason` is what its users will read."""
    reason = checked_suspension(reason)
    await store.suspend(tenant_id, reason)
    propagated = await directory.refresh([tenant_id])
    events.tenant_suspended(tenant_id, reason)
    return ChangedTerms(await store.terms(tenant_id), propagated)


async def resume(
    store: PlanStore, directory: PolicyDirectory, events: TermsEvents, tenant_id: str
) -> ChangedTerms:
    """Serve a tenant again; one that is not suspended stays as it is."""
    await store.suspend(tenant_id, "")
    propagated = await directory.refresh([tenant_id])
    events.tenant_resumed(tenant_id)
    return ChangedTerms(await store.terms(tenant_id), propagated)
