"""What a tenant may do: a plan's limits, overridden for the one tenant where need be.

In every limit 0 means none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from busbar_errors import Rejected

from busbar_billing.domain.money import TOP_UP_NANOS_MAX

REQUESTS_PER_MINUTE_MAX = 10**9
TOKENS_PER_MINUTE_MAX = 10**12
IN_FLIGHT_MAX = 10**6
WEIGHT_MAX = 1_000
BUDGET_NANOS_MAX = TOP_UP_NANOS_MAX
ALERT_PERCENTS = (80, 100)
"""Shares of a monthly budget at which people are told."""


class Band(StrEnum):
    """Which requests are admitted first when slots are short."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


class BudgetKind(StrEnum):
    """What happens when the month's budget is spent: it stops the tenant, or people are told."""

    HARD = "hard"
    ALERT = "alert"


@dataclass(frozen=True, slots=True)
class Limits:
    """Over all gateways. `monthly_budget_nanos`: of the tenant's currency, each month in UTC."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_in_flight: int = 0
    monthly_budget_nanos: int = 0
    budget_kind: BudgetKind = BudgetKind.HARD
    band: Band = Band.STANDARD
    weight: int = 1


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Overrides:
    """What differs from the plan for one tenant; None: as the plan says."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None
    monthly_budget_nanos: int | None = None
    budget_kind: BudgetKind | None = None
    band: Band | None = None
    weight: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits under a name."""

    plan_id: str
    name: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a tenant: its plan's limits with its overrides applied."""

    tenant_id: str
    currency: str
    plan_id: str | None
    overrides: Overrides
    limits: Limits
    suspended_reason: str
    """In words for the customer; empty when it is served."""


def effective(plan: Limits, over: Overrides) -> Limits:
    """The plan's limits, but for what is overridden."""
    return Limits(
        requests_per_minute=_either(over.requests_per_minute, plan.requests_per_minute),
        tokens_per_minute=_either(over.tokens_per_minute, plan.tokens_per_minute),
        max_in_flight=_either(over.max_in_flight, plan.max_in_flight),
        monthly_budget_nanos=_either(over.monthly_budget_nanos, plan.monthly_budget_nanos),
        budget_kind=over.budget_kind or plan.budget_kind,
        band=over.band or plan.band,
        weight=_either(over.weight, plan.weight),
    )


def _either(over: int | None, plan: int) -> int:
    return plan if over is None else over


_BOUNDS = {
    "requests_per_minute": (0, REQUESTS_PER_MINUTE_MAX),
    "tokens_per_minute": (0, TOKENS_PER_MINUTE_MAX),
    "max_in_flight": (0, IN_FLIGHT_MAX),
    "monthly_budget_nanos": (0, BUDGET_NANOS_MAX),
    "weight": (1, WEIGHT_MAX),
}


def check_bounds(limits: Limits | Overrides) -> None:
    """Raise Rejected when a number makes no sense."""
    for field, (least, most) in _BOUNDS.items():
        value: int | None = getattr(limits, field)
        if value is not None and not least <= value <= most:
            raise Rejected(f"{field} must be between {least} and {most}, not {value}")


@dataclass(frozen=True, slots=True)
class Budget:
    """Where a tenant stands this month."""

    spent_nanos: int
    """Charges posted of what was admitted this month, voids taken off."""
    monthly_budget_nanos: int
    """0: no budget."""
    kind: BudgetKind
    suspended_reason: str
    ends_unix_ms: int
    """When the month is over and the budget is whole again."""

    @property
    def left_nanos(self) -> int | None:
        """What a hard budget leaves, at least 0; None where nothing stops the tenant.

        Money already granted to gateways and not charged yet is not taken off.
        """
        if self.kind is BudgetKind.ALERT or not self.monthly_budget_nanos:
            return None
        return max(0, self.monthly_budget_nanos - self.spent_nanos)


def end_of_month_unix_ms(unix_ms: int) -> int:
    """When the calendar month (UTC) of a moment ends."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    years, month = divmod(moment.month, 12)
    following = datetime(moment.year + years, month + 1, 1, tzinfo=UTC)
    return int(following.timestamp()) * 1000


def percents_reached(spent_nanos: int, budget_nanos: int) -> list[int]:
    """Which of ALERT_PERCENTS the month's spending has reached; none without a budget."""
    if budget_nanos <= 0:
        return []
    return [percent for percent in ALERT_PERCENTS if spent_nanos * 100 >= budget_nanos * percent]
