"""busbar statement: months as they were closed, and what corrects them."""

from __future__ import annotations

import sys
from typing import Literal

from cyclopts import App

from busbar_cli.amounts import read_amount, show_amount, show_quantity
from busbar_cli.api import Api, Json, segment
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.output import DEFAULT, HowMany, Output, show_moment, table

app = App(name="statement", help="Monthly statements: close, list, show, credit-note.")

STATEMENTS = "/admin/v1/statements"
_CLOSE_S = 900.0


@app.command(name="list")
def list_(*, tenant: str | None = None, limit: HowMany = 50, output: Output = DEFAULT) -> None:
    """List statements and credit notes, the latest first.

    Parameters
    ----------
    tenant
        Id or name.
    limit
        How many at most.
    """
    tenant_id = find_tenant(tenant)["tenant_id"] if tenant is not None else None
    found = Api("billing").listed(STATEMENTS, limit, tenant_id=tenant_id)
    rows = [
        [
            one["number"],
            one["tenant_id"],
            one["month"],
            f"corrects {one['corrects']}" if one["corrects"] else "statement",
            show_amount(one["charged_nanos"], one["currency"]),
            show_amount(one["credited_nanos"] or one["closing_nanos"], one["currency"]),
            show_moment(one["issued_at"]),
        ]
        for one in found.items
    ]
    columns = ["NUMBER", "TENANT", "MONTH", "KIND", "CHARGED>", "CLOSING OR CREDIT>", "ISSUED"]
    output.print_list(found, table(columns, rows, empty="no statements"))


@app.command
def show(
    number: str,
    *,
    document: Literal["html", "pdf", "csv", "focus"] | None = None,
    output: Output = DEFAULT,
) -> None:
    """Show one line by line.

    Parameters
    ----------
    number
        As `list` shows it.
    document
        Write the document itself to standard output instead.
    """
    if document is not None:
        path = f"{STATEMENTS}/{segment(number)}/document"
        sys.stdout.buffer.write(Api("billing").download(path, format=document))
        return
    found = Api("billing").get(f"{STATEMENTS}/{segment(number)}")
    rows = credit_note_rows(found) if found["corrects"] else statement_rows(found)
    output.print(found, table(["SECTION", "WHAT", "QUANTITY>", "AMOUNT>"], rows))


def credit_note_rows(note: Json) -> list[list[str]]:
    """What a credit note gave back and why. The balances are its statement's, and stay there."""
    corrected = f"of statement {note['corrects']} of {note['month']}: {note['reason']}"
    return [["given back", corrected, "", show_amount(note["credited_nanos"], note["currency"])]]


def statement_rows(statement: Json) -> list[list[str]]:
    """A statement from its opening to its closing balance."""
    currency = statement["currency"]
    opening = ["opening balance", "", "", show_amount(statement["opening_nanos"], currency)]
    closing = ["closing balance", "", "", show_amount(statement["closing_nanos"], currency)]
    lines = [
        [
            line["section"].replace("_", " "),
            f"{line['model'] or line['day'] or ''}  {line['text']}".strip(),
            "" if line["quantity"] is None else show_quantity(line["quantity"], line["component"]),
            show_amount(line["amount_nanos"], currency),
        ]
        for line in statement["lines"]
    ]
    return [opening, *lines, closing]


@app.command
def close(tenant: str, month: str, *, output: Output = DEFAULT) -> None:
    """Close a month that is over; again, the same statement.

    Parameters
    ----------
    tenant
        Id or name.
    month
        Such as 2026-10 (UTC).
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/statements"
    issued = Api("billing").call("POST", path, json={"month": month}, read_s=_CLOSE_S)
    closing = show_amount(issued["closing_nanos"], issued["currency"])
    output.print(issued, f"{issued['number']}  {issued['month']}  closing balance {closing}")


@app.command(name="credit-note")
def credit_note(
    number: str, amount: str, *, reason: str, reference: str, output: Output = DEFAULT
) -> None:
    """Give money of a statement back, with a document that says so.

    Parameters
    ----------
    number
        The statement.
    amount
        How much, such as 2.50.
    reason
        For the customer to read.
    reference
        Makes a repeat harmless: the same one is carried out once.
    """
    body = {"amount_nanos": read_amount(amount), "reason": reason, "reference": reference}
    path = f"{STATEMENTS}/{segment(number)}/credit-notes"
    note, repeated = Api("billing").post_once(path, body)
    output.print(note, said_of_note(note, reason=reason, repeated=repeated))


def said_of_note(note: Json, *, reason: str, repeated: bool) -> str:
    """What a credit note gives back; of one that was there already, that nothing changed."""
    given = show_amount(note["credited_nanos"], note["currency"])
    if not repeated:
        return f"{note['number']}  gives {given} of {note['corrects']} back"
    at = show_moment(note["issued_at"])
    said = f"{note['number']}  gave {given} of {note['corrects']} back at {at} already"
    if note["reason"] != reason:
        said += f", for the reason {note['reason']!r}, which stays"
    return f"{said}: nothing changed"
