"""busbar credit, refund and correct: what people do to a tenant's money."""

from __future__ import annotations

import uuid
from decimal import Decimal

from cyclopts import App

from busbar_cli.amounts import NANOS, read_amount, show_amount
from busbar_cli.api import Api, Json, request_segment, segment
from busbar_cli.commands.tenants import TENANTS, find_tenant, said_before
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, show_moment, table

credit = App(
    name="credit", help="Promotional credit: give it, see what is left of it, withdraw it."
)


@credit.command
def give(
    tenant: str,
    amount: str,
    *,
    expires: str,
    reference: str,
    output: Output = DEFAULT,
) -> None:
    """Give a tenant money that it spends before its own, until it expires.

    Parameters
    ----------
    tenant
        Id or name.
    amount
        In the tenant's currency, such as 10 or 0.25.
    expires
        RFC 3339 time with zone; what is unspent then comes back to us.
    reference
        Names the gift, such as a ticket: the same one again, after an answer that was lost,
        changes nothing.
    """
    found = find_tenant(tenant)
    body: Json = {
        "amount_nanos": read_amount(amount),
        "currency": found["currency"],
        "reference": reference,
        "expires_at": expires,
    }
    path = f"{TENANTS}/{found['tenant_id']}/credits"
    transfer, repeated = Api("billing").post_once(path, body)
    shown = show_amount(body["amount_nanos"], found["currency"])
    said = f"{found['name']} was given {shown} until {expires}"
    if repeated:
        said = (
            f"{found['name']} was given {shown} under this reference before, at "
            f"{show_moment(transfer['posted_at'])}, and its expiry stays as it was: nothing changed"
        )
    output.print(transfer, said)


@credit.command(name="list")
def list_(tenant: str, *, limit: HowMany = 100, output: Output = DEFAULT) -> None:
    """List what a tenant was given, newest first.

    Parameters
    ----------
    tenant
        Id or name.
    limit
        How many at most.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/credits"
    credits_ = Api("billing").listed(path, limit)
    rows = [
        [
            one["credit_id"],
            show_moment(one["given_at"]),
            one["reference"],
            "withdrawn" if one["withdrawn_at"] else show_moment(one["expires_at"]),
            show_amount(one["amount_nanos"], one["currency"]),
            show_amount(one["unspent_nanos"], one["currency"]),
        ]
        for one in credits_.items
    ]
    columns = ["CREDIT", "GIVEN", "REFERENCE", "EXPIRES", "AMOUNT>", "UNSPENT>"]
    output.print_list(credits_, table(columns, rows, empty="no credit was given"))


@credit.command
def withdraw(credit_id: str, *, reason: str, output: Output = DEFAULT) -> None:
    """Take back what is unspent of a credit that was given by mistake.

    What is in a lease of a gateway follows when it comes back, unless it is spent by then.

    Parameters
    ----------
    credit_id
        As `busbar credit list` shows it.
    reason
        Why; the tenant's statement says it.
    """
    path = f"/admin/v1/credits/{segment(credit_id)}/withdrawals"
    left = Api("billing").post(path, {"reason": reason})
    currency = left["currency"]
    said = f"took {show_amount(left['taken_back_nanos'], currency)} back of {credit_id}"
    if left["unspent_nanos"]:
        unspent = show_amount(left["unspent_nanos"], currency)
        said += f"; {unspent} are in leases and follow when they come back, unless they are spent"
    output.print(left, said)


def refund(
    request_id: str,
    amount: str | None = None,
    *,
    reason: str,
    reference: str | None = None,
    output: Output = DEFAULT,
) -> None:
    """Give a charge back, or part of it; never more than was charged.

    Parameters
    ----------
    request_id
        As its x-request-id header said.
    amount
        In the tenant's currency; what is left of the charge when not given.
    reason
        Why, for the ledger.
    reference
        Names the refund, such as a ticket: the same one again changes nothing. Needed with an
        amount, for without one there is nothing left to give back twice.
    """
    if amount is not None and reference is None:
        raise CommandError(
            "a part of a charge can be given back more than once: name this time with --reference",
            Exit.USAGE,
        )
    path = f"/admin/v1/usage/{request_segment(request_id)}/refunds"
    body: Json = {"reason": reason, "reference": reference or f"cli-{uuid.uuid4().hex}"}
    if amount is not None:
        body["amount_nanos"] = read_amount(amount)
    transfer, repeated = Api("billing").post_once(path, body)
    said = f"refunded {_to_tenant(transfer)}{said_before(transfer, repeated)}"
    output.print(transfer, said + what_goes_again(transfer))


def correct(transfer_id: str, *, reason: str, output: Output = DEFAULT) -> None:
    """Undo a top-up or a refund that should not have been, while the tenant has the money.

    Parameters
    ----------
    transfer_id
        As `busbar ledger` shows it.
    reason
        Why, for the ledger.
    """
    path = f"/admin/v1/transfers/{segment(transfer_id)}/corrections"
    transfer, repeated = Api("billing").post_once(path, {"reason": reason})
    said = f"corrected {_to_tenant(transfer)} (transfer {transfer['transfer_id']})"
    if repeated and transfer["reason"] != reason:
        said += f" for the reason {transfer['reason']!r}, which stays"
    output.print(transfer, said + said_before(transfer, repeated))


def what_goes_again(refund: Json) -> str:
    """What the tenant does not keep of a refund, and how to give it all the same."""
    ended = refund["ended_credit_nanos"]
    if not ended:
        return ""
    posting = _of_tenant(refund)
    return (
        f"\n{show_amount(ended, posting['currency'])} of it was promotional credit that has "
        "expired or was withdrawn, and is taken back; to give it all the same: "
        f"busbar credit give {posting['tenant_id']} {Decimal(ended) / NANOS:f} --expires TIME "
        "--reference NAME"
    )


def _of_tenant(transfer: Json) -> Json:
    return next(one for one in transfer["postings"] if one["tenant_id"])


def _to_tenant(transfer: Json) -> str:
    """What a transfer gave to its tenant, and to whom."""
    posting = _of_tenant(transfer)
    amount = show_amount(posting["amount_nanos"], posting["currency"])
    return f"{amount} to {posting['tenant_id']}"
