"""busbar tenant: who pays, and their money."""

from __future__ import annotations

import uuid

from cyclopts import App

from busbar_cli.amounts import read_amount, show_amount
from busbar_cli.api import Api, Json
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, show_moment, table

app = App(name="tenant", help="Tenants: create, list, show, top up.")

TENANTS = "/admin/v1/tenants"
_LIST_MAX = 10_000


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
    """List the tenants."""
    tenants = list(Api("billing").pages(TENANTS, limit))
    rows = [
        [one["tenant_id"], one["name"], one["currency"], show_moment(one["created_at"])]
        for one in tenants
    ]
    empty = "none; create one: busbar tenant create NAME"
    output.print(
        {"items": tenants}, table(["ID", "NAME", "CURRENCY", "CREATED"], rows, empty=empty)
    )


@app.command
def show(tenant: str, *, output: Output = DEFAULT) -> None:
    """Show a tenant and its balance.

    Parameters
    ----------
    tenant
        Id, or name where only one is called that.
    """
    found = find_tenant(tenant)
    balance = Api("billing").get(f"{TENANTS}/{found['tenant_id']}/balance")
    rows = [
        ["id", found["tenant_id"]],
        ["name", found["name"]],
        ["created", show_moment(found["created_at"])],
        ["balance", show_amount(balance["balance_nanos"], balance["currency"])],
    ]
    output.print({**found, "balance": balance}, table(["", ""], rows))


@app.command
def topup(
    tenant: str, amount: str, *, reference: str | None = None, output: Output = DEFAULT
) -> None:
    """Add paid-in money to a tenant's balance.

    Parameters
    ----------
    tenant
        Id or name.
    amount
        In the tenant's currency, such as 10 or 0.25.
    reference
        Names the payment; the same reference again changes nothing. Made up when not given.
    """
    amount_nanos = read_amount(amount)
    found = find_tenant(tenant)
    body = {
        "amount_nanos": amount_nanos,
        "currency": found["currency"],
        "reference": reference or f"cli-{uuid.uuid4().hex}",
    }
    transfer = Api("billing").post(f"{TENANTS}/{found['tenant_id']}/topups", body)
    shown = show_amount(amount_nanos, found["currency"])
    output.print(transfer, f"{found['name']} paid in {shown}  (transfer {transfer['transfer_id']})")


def find_tenant(named: str) -> Json:
    """The tenant of an id, else of a name; raises CommandError."""
    tenants = list(Api("billing").pages(TENANTS, _LIST_MAX))
    found = [one for one in tenants if one["tenant_id"] == named] or [
        one for one in tenants if one["name"] == named
    ]
    if not found:
        raise CommandError(f"no tenant is called {named!r}: busbar tenant list", Exit.NOT_FOUND)
    if len(found) > 1:
        ids = ", ".join(one["tenant_id"] for one in found)
        raise CommandError(
            f"{len(found)} tenants are called {named!r}; give an id: {ids}", Exit.USAGE
        )
    return found[0]
