"""Plans, terms and budgets as the database keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from billing_parts import Gateway, Service
from busbar_billing.adapters.postgres.budgets import Budgets, budget_left, budgets
from busbar_billing.adapters.postgres.database import Database, open_database
from busbar_billing.adapters.postgres.plans import Plans
from busbar_billing.domain.plans import (
    NO_LIMITS,
    Band,
    Budget,
    BudgetKind,
    Limits,
    Overrides,
    Plan,
    check_bounds,
    effective,
    end_of_month_unix_ms,
    percents_reached,
)
from busbar_contracts.billing.v1.events_pb2 import BudgetReached
from busbar_errors import Conflict, NotFound, Rejected
from busbar_messaging.topology import event_subject
from busbar_runtime.pytest_plugin import Database as DatabaseAddress
from harness.polling import eventually
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

CHARGE_NANOS = 100_000
LIMITS = Limits(60, 100_000, 8, 10 * CHARGE_NANOS, BudgetKind.HARD, Band.INTERACTIVE, 3)


@pytest.fixture
async def opened(database: DatabaseAddress) -> AsyncIterator[Database]:
    async with open_database(database.billing_dsn) as made:
        yield made


@pytest.fixture
async def plan(opened: Database) -> Plan:
    made = Plan(f"p-{uuid4().hex[:8]}", "Small", LIMITS)
    await Plans(opened).put(made)
    return made


def test_an_override_wins_and_zero_overrides_too() -> None:
    over = Overrides(requests_per_minute=0, band=Band.BATCH)

    assert effective(LIMITS, over) == replace(LIMITS, requests_per_minute=0, band=Band.BATCH)
    assert effective(LIMITS, Overrides()) == LIMITS


@pytest.mark.parametrize(
    "wrong",
    [
        Overrides(requests_per_minute=-1),
        Overrides(tokens_per_minute=10**12 + 1),
        Overrides(max_in_flight=2**32),
        Overrides(monthly_budget_nanos=10**15 + 1),
        Overrides(weight=0),
        Overrides(weight=1_001),
        Limits(weight=-5),
    ],
)
def test_absurd_limits_are_refused(wrong: Limits | Overrides) -> None:
    with pytest.raises(Rejected, match="must be between"):
        check_bounds(wrong)


@given(st.integers(0, 10**16), st.integers(0, 10**15))
def test_what_is_left_of_a_hard_budget_is_never_negative_and_alerts_agree(
    spent: int, wanted: int
) -> None:
    budget = Budget(spent, wanted, BudgetKind.HARD, "", 0)
    reached = percents_reached(spent, wanted)

    assert budget.left_nanos == (max(0, wanted - spent) if wanted else None)
    assert (100 in reached) == (budget.left_nanos == 0)
    assert reached in ([], [80], [80, 100])
    assert Budget(spent, wanted, BudgetKind.ALERT, "", 0).left_nanos is None


def test_a_month_ends_at_midnight_utc() -> None:
    def ms(*parts: int) -> int:
        return int(datetime(*parts, tzinfo=UTC).timestamp() * 1000)  # type: ignore[arg-type]

    assert end_of_month_unix_ms(ms(2026, 12, 31, 23)) == ms(2027, 1, 1)
    assert end_of_month_unix_ms(ms(2028, 2, 1)) == ms(2028, 3, 1)


async def test_terms_follow_the_plan_but_for_what_is_overridden(
    opened: Database, plan: Plan, tenant: str
) -> None:
    plans = Plans(opened)
    before = await plans.terms(tenant)
    await plans.set_terms(tenant, plan.plan_id, Overrides(weight=7))
    await plans.put(replace(plan, limits=replace(LIMITS, max_in_flight=9)))
    terms = await plans.terms(tenant)

    assert before.limits == NO_LIMITS
    assert terms.limits == replace(LIMITS, max_in_flight=9, weight=7)
    assert await plans.tenants_of(plan.plan_id) == [tenant]
    with pytest.raises(Conflict):
        await plans.delete(plan.plan_id)
    with pytest.raises(NotFound):
        await plans.set_terms(tenant, "no-such-plan", Overrides())
    with pytest.raises(NotFound):
        await plans.suspend("nobody", "because")


async def test_the_months_spending_is_what_was_charged_less_what_was_taken_back(
    billing: Service, gateway: Gateway, opened: Database, plan: Plan, tenant: str
) -> None:
    await Plans(opened).set_terms(tenant, plan.plan_id, Overrides())
    records = [gateway.record(tenant) for _ in range(4)]
    long_ago = gateway.record(tenant, admitted_unix_ns=1_700_000_000 * 10**9)
    early_void = gateway.record(tenant)
    await gateway.publish(voids=(gateway.void(early_void),))
    await gateway.publish(*records, long_ago, early_void)
    await gateway.publish(*records)
    await gateway.publish(voids=(gateway.void(records[0]),))

    async def spent() -> tuple[int, int | None]:
        async with opened.transaction() as connection:
            found = (await budgets(connection, [tenant]))[tenant]
            return found.spent_nanos, await budget_left(connection, tenant)

    left = (3 * CHARGE_NANOS, 7 * CHARGE_NANOS)
    await eventually(
        spent, within_s=20, what="three charges are left", until=lambda found: found == left
    )
    await gateway.publish(*records)  # once more, after all of it

    assert await spent() == left


async def test_each_share_of_a_budget_is_told_once(
    gateway: Gateway, bus: Client, opened: Database, plan: Plan, tenant: str
) -> None:
    await Plans(opened).set_terms(tenant, plan.plan_id, Overrides())
    told: list[tuple[int, int]] = []

    async def note(message: Msg) -> None:
        event = BudgetReached.FromString(message.data)
        if event.tenant_id == tenant:
            told.append((event.percent, event.spent_nanos))

    async def so_far() -> list[tuple[int, int]]:
        return told

    await bus.subscribe(event_subject("billing", "budget_reached"), cb=note)
    await gateway.publish(*[gateway.record(tenant) for _ in range(8)])
    first = [(80, 8 * CHARGE_NANOS)]
    await eventually(so_far, within_s=30, what="80 % are told", until=lambda them: them == first)
    await gateway.publish(*[gateway.record(tenant) for _ in range(2)])
    both = [*first, (100, 10 * CHARGE_NANOS)]
    await eventually(so_far, within_s=30, what="100 % are told", until=lambda them: them == both)

    assert await Budgets(opened).new_alerts() == []
    async with opened.transaction() as connection:
        assert await budget_left(connection, tenant) == 0
