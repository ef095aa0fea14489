"""busbar tenant: who pays, and their money."""

from __future__ import annotations

import re

from cyclopts import App

from busbar_cli.amounts import read_amount, show_amount
from busbar_cli.api import Api, Json
from busbar_cli.commands.plans import AWAY, NO_OPTIONS, LimitOptions, beside, limit_rows
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, err, show_moment, table

app = App(
    name="tenant",
    help="Tenants: create, list, show, topup, plan, suspend, resume, details, low-balance.",
)

TENANTS = "/admin/v1/tenants"
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NAME_MAX = 100


@app.command
def create(
    name: str, *, tenant_id: str | None = None, currency: str = "USD", output: Output = DEFAULT
) -> None:
    """Create a tenant.

    Parameters
    ----------
    name
        What people call it.
    tenant_id
        Its id; made up when not given.
    currency
        What it pays in.
    """
    body: Json = {"name": name, "currency": currency}
    if tenant_id is not None:
        body["tenant_id"] = tenant_id
    tenant = Api("billing").post(TENANTS, body)
    output.print(tenant, f"{tenant['tenant_id']}  {tenant['name']}")


@app.command(name="list")
def list_(*, limit: HowMany = 1000, output: Output = DEFAULT) -> None:
    """List the tenants.

    Parameters
    ----------
    limit
        How many at most.
    """
    tenants = Api("billing").listed(TENANTS, limit)
    rows = [
        [one["tenant_id"], one["name"], one["currency"], show_moment(one["created_at"])]
        for one in tenants.items
    ]
    empty = "none; create one: busbar tenant create NAME"
    output.print_list(tenants, table(["ID", "NAME", "CURRENCY", "CREATED"], rows, empty=empty))


@app.command
def show(tenant: str, *, output: Output = DEFAULT) -> None:
    """Show a tenant, its balance and what it may do.

    Parameters
    ----------
    tenant
        Id or name.
    """
    found = find_tenant(tenant)
    balance = Api("billing").get(f"{TENANTS}/{found['tenant_id']}/balance")
    terms = Api("billing").get(f"{TENANTS}/{found['tenant_id']}/terms")
    rows = [
        ["id", found["tenant_id"]],
        ["name", found["name"]],
        ["created", show_moment(found["created_at"])],
        ["balance", show_amount(balance["balance_nanos"], balance["currency"])],
        *_terms_rows(terms),
    ]
    output.print({**found, "balance": balance, "terms": terms}, table(["", ""], rows))


@app.command
def topup(tenant: str, amount: str, *, reference: str, output: Output = DEFAULT) -> None:
    """Add paid-in money to a tenant's balance.

    Parameters
    ----------
    tenant
        Id or name.
    amount
        In the tenant's currency, such as 10 or 0.25.
    reference
        Names the payment, such as the bank's reference or a ticket: the same one again, after an
        answer that was lost, changes nothing.
    """
    amount_nanos = read_amount(amount)
    found = find_tenant(tenant)
    body = {
        "amount_nanos": amount_nanos,
        "currency": found["currency"],
        "reference": reference,
    }
    path = f"{TENANTS}/{found['tenant_id']}/topups"
    transfer, repeated = Api("billing").post_once(path, body)
    shown = show_amount(amount_nanos, found["currency"])
    said = f"{found['name']} paid in {shown} as {reference}  (transfer {transfer['transfer_id']})"
    output.print(transfer, said + said_before(transfer, repeated))


@app.command
def plan(
    tenant: str,
    plan_id: str | None = None,
    *,
    none: bool = False,
    limits: LimitOptions = NO_OPTIONS,
    output: Output = DEFAULT,
) -> None:
    """Give a tenant a plan, and what differs from it for this tenant alone.

    Without options: show what it has. A change replaces all of it, and what was before is shown.

    Parameters
    ----------
    tenant
        Id or name.
    plan_id
        Id of the plan. Without it only the limits given here hold.
    none
        Take the plan and all limits away.
    """
    overrides, api = limits.body(), Api("billing")
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/terms"
    if none and (plan_id or overrides):
        raise CommandError("--none takes everything away: give no plan and no limit", Exit.USAGE)
    before = api.get(path)
    if not (plan_id or overrides or none):
        output.print(before, table(["", ""], _terms_rows(before)))
        return
    terms = api.put(path, {"plan_id": plan_id, "overrides": overrides})
    rows = beside(_terms_rows(terms), _terms_rows(before))
    output.print(terms, table(["", "NOW", "BEFORE"], rows))
    _say_when_not_propagated(terms)


@app.command
def suspend(tenant: str, *, reason: str, output: Output = DEFAULT) -> None:
    """Serve nothing of a tenant until it is resumed.

    Parameters
    ----------
    tenant
        Id or name.
    reason
        Why, as the tenant's users will read it.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/suspend"
    terms = Api("billing").post(path, {"reason": reason})
    output.print(terms, f"{terms['tenant_id']} suspended: {terms['suspended_reason']}")
    _say_when_not_propagated(terms)


@app.command
def resume(tenant: str, *, output: Output = DEFAULT) -> None:
    """Serve a suspended tenant again.

    Parameters
    ----------
    tenant
        Id or name.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/resume"
    terms = Api("billing").post(path, {})
    output.print(terms, f"{terms['tenant_id']} resumed")
    _say_when_not_propagated(terms)


def _terms_rows(terms: Json) -> list[list[str]]:
    currency, month = terms["currency"], terms["this_month"]
    left = month["left_nanos"]
    return [
        ["plan", terms["plan_id"] or "none"],
        *limit_rows(terms["limits"], currency),
        ["spent this month", show_amount(month["spent_nanos"], currency)],
        ["left this month", "no bound" if left is None else show_amount(left, currency)],
        ["suspended", terms["suspended_reason"] or "no"],
    ]


def _say_when_not_propagated(changed: Json) -> None:
    if not changed["propagated"]:
        err().print(AWAY, style="yellow")


def said_before(transfer: Json, repeated: bool) -> str:
    """What is said after a transfer that was there already; nothing after a new one."""
    moment = show_moment(transfer["posted_at"])
    return f" at {moment} already: nothing changed" if repeated else ""


def find_tenant(named: str) -> Json:
    """The tenant of an id, else of a name; raises CommandError."""
    if _ID.fullmatch(named):
        try:
            return Api("billing").get(f"{TENANTS}/{named}")
        except CommandError as error:
            if error.exit_status is not Exit.NOT_FOUND:
                raise
    found: list[Json] = []
    if named:
        found = Api("billing").get(TENANTS, name=named[:_NAME_MAX])["items"]
    if not found:
        raise CommandError(f"no tenant is called {named!r}: busbar tenant list", Exit.NOT_FOUND)
    return found[0]
