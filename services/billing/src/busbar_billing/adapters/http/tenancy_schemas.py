"""JSON of plans, terms and projects. In every limit 0 means none."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field, StrictInt, StrictStr

from busbar_billing.adapters.http.schemas import Slug, Wanted
from busbar_billing.domain.names import NAME_MAX, SUSPENSION_MAX
from busbar_billing.domain.plans import (
    BUDGET_NANOS_MAX,
    IN_FLIGHT_MAX,
    REQUESTS_PER_MINUTE_MAX,
    TOKENS_PER_MINUTE_MAX,
    WEIGHT_MAX,
    Band,
    Budget,
    BudgetKind,
    Limits,
    Overrides,
    Plan,
    Terms,
)
from busbar_billing.usecases.projects import Project

Requests = Annotated[StrictInt, Field(ge=0, le=REQUESTS_PER_MINUTE_MAX)]
Tokens = Annotated[StrictInt, Field(ge=0, le=TOKENS_PER_MINUTE_MAX)]
InFlight = Annotated[StrictInt, Field(ge=0, le=IN_FLIGHT_MAX)]
BudgetNanos = Annotated[StrictInt, Field(ge=0, le=BUDGET_NANOS_MAX)]
Weight = Annotated[StrictInt, Field(ge=1, le=WEIGHT_MAX)]


class LimitsFields(Wanted):
    """Limits over all gateways. The budget is of the tenant's currency, for each month in UTC; a
    hard one stops the tenant, of an alert one people are told at 80 % and 100 %."""

    requests_per_minute: Requests = 0
    tokens_per_minute: Tokens = 0
    max_in_flight: InFlight = 0
    monthly_budget_nanos: BudgetNanos = 0
    budget_kind: BudgetKind = BudgetKind.HARD
    band: Band = Band.STANDARD
    weight: Weight = 1


class WantedPlan(LimitsFields):
    """A plan to make or to replace."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=NAME_MAX)]

    def plan(self, plan_id: str) -> Plan:
        """As the domain has it."""
        limits = Limits(**self.model_dump(exclude={"name"}))
        return Plan(plan_id, self.name, limits)


class OverridesFields(Wanted):
    """What differs from the plan; null or left out: as the plan says."""

    requests_per_minute: Requests | None = None
    tokens_per_minute: Tokens | None = None
    max_in_flight: InFlight | None = None
    monthly_budget_nanos: BudgetNanos | None = None
    budget_kind: BudgetKind | None = None
    band: Band | None = None
    weight: Weight | None = None


class WantedTerms(Wanted):
    """What a tenant may do from now on: a plan, or none, and what differs from it."""

    plan_id: Slug | None = None
    overrides: OverridesFields = OverridesFields()

    def domain_overrides(self) -> Overrides:
        """As the domain has it."""
        return Overrides(**self.overrides.model_dump())


class WantedSuspension(Wanted):
    """Why nothing is served, as the tenant's users will read it."""

    reason: Annotated[StrictStr, Field(min_length=1, max_length=SUSPENSION_MAX)]


class PlanAnswer(BaseModel):
    """A plan."""

    plan_id: str
    name: str
    limits: LimitsFields


class ChangedPlanAnswer(PlanAnswer):
    """A plan after a change. `propagated` false: gateways learn of it when the bus is back."""

    propagated: bool


class BudgetAnswer(BaseModel):
    """This month's spending; `left_nanos` null: nothing stops the tenant."""

    spent_nanos: int
    left_nanos: int | None


class TermsAnswer(BaseModel):
    """What holds for a tenant: `limits` are the plan's with the overrides applied."""

    tenant_id: str
    currency: str
    plan_id: str | None
    overrides: OverridesFields
    limits: LimitsFields
    suspended_reason: str
    this_month: BudgetAnswer


class ChangedTermsAnswer(TermsAnswer):
    """Terms after a change. `propagated` false: gateways learn of it when the bus is back."""

    propagated: bool


class WantedProject(Wanted):
    """A project to create."""

    name: Annotated[StrictStr, Field(min_length=1, max_length=NAME_MAX)]


class ProjectAnswer(BaseModel):
    """A project; no key can be added to an archived one."""

    project_id: str
    tenant_id: str
    name: str
    created_at: datetime
    archived_at: datetime | None


def show_plan(plan: Plan) -> PlanAnswer:
    """A plan."""
    return PlanAnswer(
        plan_id=plan.plan_id, name=plan.name, limits=LimitsFields(**asdict(plan.limits))
    )


def show_terms(terms: Terms, budget: Budget) -> TermsAnswer:
    """What holds for a tenant, and where it stands."""
    return TermsAnswer(
        tenant_id=terms.tenant_id,
        currency=terms.currency,
        plan_id=terms.plan_id,
        overrides=OverridesFields(**asdict(terms.overrides)),
        limits=LimitsFields(**asdict(terms.limits)),
        suspended_reason=terms.suspended_reason,
        this_month=BudgetAnswer(spent_nanos=budget.spent_nanos, left_nanos=budget.left_nanos),
    )


def show_project(project: Project) -> ProjectAnswer:
    """A project."""
    return ProjectAnswer(
        project_id=project.project_id,
        tenant_id=project.tenant_id,
        name=project.name,
        created_at=project.created_at,
        archived_at=project.archived_at,
    )
