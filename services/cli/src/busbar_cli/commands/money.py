"""busbar usage, balance and ledger: what was used, what is left, and every transfer."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal

from cyclopts import App

from busbar_cli.amounts import show_amount, show_quantity
from busbar_cli.api import Api, Json, request_segment
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, show_moment, show_node, table

usage_app = App(
    name="usage", help="Billed requests: list them, add them up, explain the charge of one."
)


@usage_app.default
def usage(
    request_id: str | None = None,
    *,
    tenant: str | None = None,
    since: str | None = None,
    until: str | None = None,
    bucket: Literal["minute", "hour", "day"] | None = None,
    by: Literal["key", "model", "project"] | None = None,
    limit: HowMany = 50,
    output: Output = DEFAULT,
) -> None:
    """List billed requests, newest first, or explain the charge of one, or add a tenant's up.

    Parameters
    ----------
    request_id
        One request, as its x-request-id header said.
    tenant
        Id or name.
    since
        RFC 3339 time with zone.
    until
        RFC 3339 time with zone.
    bucket
        Add a tenant's usage up in buckets of this length, oldest first; minutes of at most a day at
        once, hours of 31 days, days of 366 days.
    by
        Tell buckets apart by this; days when no bucket is given.
    limit
        How many at most.
    """
    if request_id is not None:
        explain(request_id, output=output)
        return
    if bucket is not None or by is not None:
        if tenant is None:
            raise CommandError("usage is added up for one --tenant", Exit.USAGE)
        _buckets(
            limit,
            output,
            tenant_id=find_tenant(tenant)["tenant_id"],
            bucket=bucket or "day",
            group_by=by or "nothing",
            since=since,
            until=until,
        )
        return
    tenant_id = find_tenant(tenant)["tenant_id"] if tenant is not None else None
    query = {"tenant_id": tenant_id, "since": since, "until": until}
    records = Api("billing").listed("/admin/v1/usage", limit, **query)
    rows = [
        [
            show_moment(one["admitted_at"]),
            one["request_id"],
            one["tenant_id"],
            one["deployment"],
            one["api"],
            one["input_tokens"],
            one["output_tokens"],
            "voided" if one["voided"] else one["outcome"],
            show_amount(one["amount_nanos"], one["currency"]),
        ]
        for one in records.items
    ]
    columns = ["TIME", "REQUEST", "TENANT", "DEPLOYMENT", "API", "IN>", "OUT>", "OUTCOME", "COST>"]
    output.print_list(records, table(columns, rows, empty="no billed requests"))


def _buckets(limit: int, output: Output, **query: str | None) -> None:
    found = Api("billing").listed("/admin/v1/usage/buckets", limit, **query)
    rows = [
        [
            show_moment(one["bucket_at"]),
            one["group"] or ("default" if query["group_by"] == "project" else ""),
            one["requests"],
            one["input_tokens"],
            one["output_tokens"],
            show_amount(one["amount_nanos"], one["currency"]),
        ]
        for one in found.items
    ]
    group = "" if query["group_by"] == "nothing" else str(query["group_by"]).upper()
    columns = ["FROM", group, "REQUESTS>", "IN>", "OUT>", "COST>"]
    output.print_list(found, table(columns, rows, empty="no usage in that time"))


def balance(tenant: str, *, output: Output = DEFAULT) -> None:
    """Show what a tenant has left.

    Parameters
    ----------
    tenant
        Id or name.
    """
    held = Api("billing").get(f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/balance")
    output.print(held, show_amount(held["balance_nanos"], held["currency"]))


def ledger(
    *,
    tenant: str | None = None,
    request: str | None = None,
    limit: HowMany = 50,
    output: Output = DEFAULT,
) -> None:
    """List transfers with their postings, newest first.

    Parameters
    ----------
    tenant
        Id or name.
    request
        Only what one request moved.
    limit
        How many transfers at most.
    """
    tenant_id = find_tenant(tenant)["tenant_id"] if tenant is not None else None
    query = {"tenant_id": tenant_id, "request_id": request}
    transfers = Api("billing").listed("/admin/v1/ledger", limit, **query)
    rows = [row for transfer in transfers.items for row in posting_rows(transfer)]
    output.print_list(transfers, table(POSTING_COLUMNS, rows, empty="no transfers"))


POSTING_COLUMNS = ["TIME", "TRANSFER", "KIND", "REQUEST", "ACCOUNT", "TENANT", "AMOUNT>"]


def posting_rows(transfer: Json) -> Iterator[list[object]]:
    """One row for each posting; what they share stands in the first."""
    head: list[object] = [
        show_moment(transfer["posted_at"]),
        transfer["transfer_id"],
        transfer["kind"],
        transfer["request_id"] or transfer["reason"],
    ]
    for posting in transfer["postings"]:
        amount = show_amount(posting["amount_nanos"], posting["currency"])
        yield [*head, posting["account"], posting["tenant_id"] or "", amount]
        head = ["", "", "", ""]


@usage_app.command
def explain(request_id: str, *, output: Output = DEFAULT) -> None:
    """Explain the charge of one request line by line.

    Parameters
    ----------
    request_id
        As its x-request-id header said.
    """
    if not request_id.startswith("req_"):
        raise CommandError(
            f"{request_id!r} is no request id, req_ and 32 hex digits; "
            f"for a tenant's usage: busbar usage --tenant {shlex.quote(request_id)}",
            Exit.USAGE,
        )
    path = f"/admin/v1/usage/{request_segment(request_id)}"
    found = Api("billing").get(path)
    total = show_amount(found["amount_nanos"], found["currency"])
    said = (
        f"{found['request_id']}  {found['deployment']} by {found['api']} for {found['tenant_id']}\n"
        f"{show_moment(found['admitted_at'])}  on {show_node(found['node'])}, "
        f"price book {found['price_version']}, class {found['rated_class']}"
    )
    if not output.json:
        output.print(found, said)
    columns = ["COMPONENT", "USED BEFORE>", "QUANTITY>", "PRICE>", "NANOS>"]
    output.print(found, table(columns, charge_rows(found)))
    if not output.json:
        taken_back = f"  (taken back: {found['void_reason']})" if found["voided"] else ""
        output.print(found, f"charged {total}{taken_back}")


def charge_rows(found: Json) -> list[list[str]]:
    """The lines of a charge, which add up to it: what rounding it took or gave is one of them."""
    rows = [
        [
            line["component"],
            ""
            if line["used_before"] is None
            else show_quantity(line["used_before"], line["component"]),
            show_quantity(line["quantity"], line["component"]),
            f"{show_amount(line['amount_nanos'], found['currency'])} / {line['per_units']:,}",
            line["exact_nanos"],
        ]
        for line in found["lines"]
    ]
    exact = sum((Decimal(line["exact_nanos"]) for line in found["lines"]), Decimal(0))
    rounding = found["amount_nanos"] - exact
    return [*rows, ["rounding", "", "", "", f"{rounding:f}"]] if rounding else rows
