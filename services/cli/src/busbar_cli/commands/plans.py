"""busbar plan: limits under a name, which tenants are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cyclopts import App, Parameter

from busbar_cli.amounts import read_amount, show_amount
from busbar_cli.api import Api, Json, segment
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, err, table

app = App(name="plan", help="Plans: set, list, show, delete.")

PLANS = "/admin/v1/plans"
AWAY = "the bus is away: gateways learn of it when it is back"


Bound = int | Literal["none"]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class LimitOptions:
    """What a tenant may do, over all gateways."""

    requests_per_minute: Bound | None = None
    """Requests a minute, or none: no limit."""
    tokens_per_minute: Bound | None = None
    """Input and output tokens a minute, or none."""
    in_flight: Bound | None = None
    """Requests at a time, or none."""
    budget: str | None = None
    """For each calendar month in UTC, in the tenant's currency, such as 100 or 0.25, or none."""
    budget_kind: Literal["hard", "alert"] | None = None
    """hard stops the tenant when it is spent; of alert people are told at 80 % and 100 %."""
    band: Literal["interactive", "standard", "batch"] | None = None
    """Who is admitted first when slots are short."""
    weight: int | None = None
    """Share inside the band, relative to the other tenants'."""

    def body(self) -> Json:
        """What was given, as the API calls it."""
        given = {
            "requests_per_minute": _bound("--requests-per-minute", self.requests_per_minute),
            "tokens_per_minute": _bound("--tokens-per-minute", self.tokens_per_minute),
            "max_in_flight": _bound("--in-flight", self.in_flight),
            "monthly_budget_nanos": _bound("--budget", _nanos(self.budget)),
            "budget_kind": self.budget_kind,
            "band": self.band,
            "weight": self.weight,
        }
        return {name: value for name, value in given.items() if value is not None}


def _nanos(budget: str | None) -> Bound | None:
    if budget is None or budget == "none":
        return budget
    return read_amount(budget)


def _bound(option: str, value: Bound | None) -> int | None:
    """As the API has it, where 0 is no limit: nobody who types 0 means that."""
    if value == 0:
        raise CommandError(
            f"{option} 0 would be no limit at all: say {option} none for that; "
            "to serve nothing of a tenant: busbar tenant suspend TENANT --reason WHY",
            Exit.USAGE,
        )
    return 0 if value == "none" else value


NO_OPTIONS = LimitOptions()


@app.command(name="set")
def set_(
    plan: str,
    *,
    name: str | None = None,
    limits: LimitOptions = NO_OPTIONS,
    output: Output = DEFAULT,
) -> None:
    """Make a plan, or replace it: a limit that is not given is none. Shows what was before.

    Parameters
    ----------
    plan
        Its id, such as small.
    name
        What people call it. Default: its id.
    """
    wanted = {"name": name or plan, **limits.body()}
    api, path = Api("billing"), f"{PLANS}/{segment(plan)}"
    try:
        before = api.get(path)
    except CommandError as error:
        if error.exit_status is not Exit.NOT_FOUND:
            raise
        before = None
    made = api.put(path, wanted)
    rows = _rows(made) if before is None else beside(_rows(made), _rows(before))
    output.print(made, table(["", "NOW", "BEFORE"] if before else ["", ""], rows))
    if not made["propagated"]:
        err().print(AWAY, style="yellow")


@app.command(name="list")
def list_(*, limit: HowMany = 1000, output: Output = DEFAULT) -> None:
    """List the plans."""
    plans = Api("billing").listed(PLANS, limit)
    rows = [
        [one["plan_id"], one["name"], *[value for _, value in limit_rows(one["limits"], None)]]
        for one in plans.items
    ]
    columns = ["ID", "NAME", "REQ/MIN>", "TOKENS/MIN>", "IN FLIGHT>", "BUDGET>", "BAND", "WEIGHT>"]
    empty = "none; make one: busbar plan set NAME --requests-per-minute 60"
    output.print_list(plans, table(columns, rows, empty=empty))


@app.command
def show(plan: str, *, output: Output = DEFAULT) -> None:
    """Show a plan."""
    found = Api("billing").get(f"{PLANS}/{segment(plan)}")
    output.print(found, table(["", ""], _rows(found)))


@app.command
def delete(plan: str, *, output: Output = DEFAULT) -> None:
    """Delete a plan that no tenant has."""
    Api("billing").delete(f"{PLANS}/{segment(plan)}")
    output.print({"deleted": plan}, f"{plan} deleted")


def beside(now: list[list[str]], before: list[list[str]]) -> list[list[str]]:
    """Rows of a name, what it is now and, where that was something else, what it was."""
    return [
        [name, value, "" if was == value else was]
        for (name, value), (_, was) in zip(now, before, strict=True)
    ]


def _rows(plan: Json) -> list[list[str]]:
    return [["id", plan["plan_id"]], ["name", plan["name"]], *limit_rows(plan["limits"], None)]


def limit_rows(limits: Json, currency: str | None) -> list[list[str]]:
    """Limits as people read them; `currency` None where it is the tenant's."""
    budget = limits["monthly_budget_nanos"]
    shown = show_amount(budget, currency) if currency else show_amount(budget).lstrip("$")
    return [
        ["requests/min", _limit(limits["requests_per_minute"])],
        ["tokens/min", _limit(limits["tokens_per_minute"])],
        ["in flight", _limit(limits["max_in_flight"])],
        ["monthly budget", f"{shown} {limits['budget_kind']}" if budget else "none"],
        ["band", limits["band"]],
        ["weight", str(limits["weight"])],
    ]


def _limit(value: int) -> str:
    return f"{value:,}" if value else "none"
