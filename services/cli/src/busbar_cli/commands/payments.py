"""busbar payment: pages to pay on, and what the payment provider told."""

from __future__ import annotations

from cyclopts import App

from busbar_cli.amounts import read_amount
from busbar_cli.api import Api
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.output import DEFAULT, HowMany, Output, show_moment, table

app = App(name="payment", help="Payments: start a checkout, list the provider's events.")


@app.command
def checkout(
    tenant: str, amount: str, *, success_url: str, cancel_url: str, output: Output = DEFAULT
) -> None:
    """Start a checkout; prints the address of the page where the tenant pays.

    Parameters
    ----------
    tenant
        Id or name.
    amount
        In the tenant's currency, such as 10 or 0.25.
    success_url
        Where the page goes when it is paid.
    cancel_url
        Where it goes when it is not.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/checkouts"
    body = {
        "amount_nanos": read_amount(amount),
        "success_url": success_url,
        "cancel_url": cancel_url,
    }
    started = Api("billing").post(path, body)
    output.print(started, started["url"])


@app.command
def events(*, limit: HowMany = 50, output: Output = DEFAULT) -> None:
    """List what the payment provider told and what became of it, newest first.

    Parameters
    ----------
    limit
        How many at most.
    """
    found = Api("billing").listed("/admin/v1/payments/events", limit)
    rows = [
        [show_moment(one["received_at"]), one["event_id"], one["type"], one["outcome"]]
        for one in found.items
    ]
    columns = ["RECEIVED", "EVENT", "TYPE", "OUTCOME"]
    output.print_list(found, table(columns, rows, empty="no events"))
