"""Measured work against its energy cost and against what was charged for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from busbar_billing.domain.audit.findings import Breach, Check
from busbar_billing.domain.audit.journal import known_moments, name_of
from busbar_billing.domain.energy import EnergyPrice, Spent, cost_by_currency, energy_key, site_of


@dataclass(frozen=True, slots=True)
class WorkRow:
    """Measured work of one attempt and what became of its request."""

    node: str
    agent_run_id: str
    sequence: int
    received_unix_ns: int
    """The same for all that was stored in one transaction."""
    request_id: UUID
    tenant_id: str
    spent: Spent | None
    """None: the node has no counter."""
    charged_tenant: str | None
    """Whom the request was charged to; None: nobody."""
    leaked: bool
    """Nothing was earned by this attempt."""


@dataclass(frozen=True, slots=True)
class WorkNumber:
    """What a cost record is called by the run of an agent that made it."""

    node: str
    agent_run_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class PriceRow:
    """An energy price and since when it was known."""

    price: EnergyPrice
    created_unix_ns: int


@dataclass(frozen=True, slots=True)
class Leaked:
    """How much brought nothing in."""

    attempts: int
    energy_mj: int


def leaked(rows: Iterable[WorkRow]) -> Leaked:
    """What of the work was for nothing."""
    lost = [row for row in rows if row.leaked]
    return Leaked(len(lost), sum(row.spent.energy_mj for row in lost if row.spent))


def check_owners(rows: Iterable[WorkRow]) -> list[Breach]:
    """Work is measured for the tenant who is charged for it."""
    return [
        Breach(
            Check.WORK_JOINED,
            name_of(row.request_id),
            f"was measured on {row.node} for {row.tenant_id} and charged to {row.charged_tenant}",
        )
        for row in rows
        if row.charged_tenant is not None and row.charged_tenant != row.tenant_id
    ]


def check_numbers(unfollowed: Iterable[WorkNumber]) -> list[Breach]:
    """Agents count their records from 1: before each there is the one before."""
    return [
        Breach(
            Check.WORK_NUMBERED,
            f"{one.node} {one.agent_run_id}",
            f"number {one.sequence} arrived, number {one.sequence - 1} did not",
        )
        for one in unfollowed
    ]


def check_energy(
    rows: Iterable[WorkRow], prices: Sequence[PriceRow], booked: Mapping[str, Mapping[str, int]]
) -> list[Breach]:
    """What each transaction stored was booked at the prices known then; `booked` is by idempotency
    key and currency."""
    together: defaultdict[tuple[str, str, int], list[WorkRow]] = defaultdict(list)
    for row in rows:
        if row.spent is not None:
            together[row.node, row.agent_run_id, row.received_unix_ns].append(row)
    found: list[Breach] = []
    for (node, run, at), stored in together.items():
        key = energy_key(node, run, min(row.sequence for row in stored))
        said = {name: nanos for name, nanos in booked.get(key, {}).items() if nanos}
        moments = known_moments(at, (one.created_unix_ns for one in prices))
        possible = [_cost(stored, prices, moment) for moment in moments]
        if said not in possible:
            detail = f"cost {possible[0] or 'nothing'}; booked is {said or 'nothing'}"
            found.append(Breach(Check.ENERGY_BOOKED, key, detail))
    return found


def _cost(stored: Iterable[WorkRow], prices: Iterable[PriceRow], known_ns: int) -> dict[str, int]:
    """What it cost by the prices known at a moment, in nanos by currency; zeros left out."""
    stored = list(stored)
    site = site_of(stored[0].node)
    here = [
        one.price for one in prices if one.price.site == site and one.created_unix_ns <= known_ns
    ]
    spent = [row.spent for row in stored if row.spent is not None]
    return {name: nanos for name, nanos in cost_by_currency(spent, here).items() if nanos}


@dataclass(frozen=True, slots=True)
class MonthRow:
    """A tenant's month as it is kept, and what its records add up to."""

    tenant_id: str
    month: str
    kept_nanos: int
    recorded_nanos: int
    recorded_requests: int
    rolled_up: Mapping[int, tuple[int, int]]
    """By length of bucket in seconds: nanos and requests."""
    meters_off: Sequence[str] = ()
    """Quantities that decide prices and are not what the records consumed, in words."""


def check_months(rows: Iterable[MonthRow]) -> list[Breach]:
    """Months, rollups of every length, and metered quantities are what the records add up to."""
    return [
        Breach(Check.MONTHS_ADD_UP, f"month {row.month} of {row.tenant_id}", detail)
        for row in rows
        for detail in _month_details(row)
    ]


def _month_details(row: MonthRow) -> Iterable[str]:
    if row.kept_nanos != row.recorded_nanos:
        yield f"is kept as {row.kept_nanos} nanos; its records add up to {row.recorded_nanos}"
    recorded = (row.recorded_nanos, row.recorded_requests)
    for bucket_s, said in sorted(row.rolled_up.items()):
        if said != recorded:
            yield (
                f"rolled up by {bucket_s} s is {said[0]} nanos of {said[1]} requests; its records "
                f"are {recorded[0]} of {recorded[1]}"
            )
    yield from row.meters_off
