"""busbar entity: who issues statements. busbar tenant details: to whom."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from cyclopts import App

from busbar_cli.api import Api, Json, segment
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.commands.tenants import app as tenant_app
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, table

app = App(name="entity", help="Legal entities, which issue statements: set, list, show.")

_ENTITIES = "/admin/v1/legal-entities"
_PPM_PER_PERCENT = 10_000


@app.command(name="set")
def set_(
    entity_id: str,
    *,
    name: str,
    number_prefix: str,
    address: list[str] | None = None,
    tax_id: str = "",
    tax: str = "",
    tax_percent: str = "0",
    tax_note: str = "",
    output: Output = DEFAULT,
) -> None:
    """Make an entity, or replace what its next statements say; `default` issues those of tenants
    for which nothing else is said.

    Parameters
    ----------
    entity_id
        Such as default.
    name
        As it stands on statements.
    number_prefix
        Begins every number, such as BB; never changes.
    address
        A line of it; several: repeat.
    tax_id
        Its own.
    tax
        What the tax is called that charges contain, such as VAT. Default: none.
    tax_percent
        Of the net amount, such as 19 or 7.7.
    tax_note
        What else a statement must say about it.
    """
    body = {
        "name": name,
        "number_prefix": number_prefix,
        "address": address or [],
        "tax_id": tax_id,
        "tax": {"name": tax, "ppm": _read_ppm(tax_percent), "note": tax_note},
    }
    made = Api("billing").put(f"{_ENTITIES}/{segment(entity_id)}", body)
    output.print(made, f"{made['entity_id']}  {made['name']}  numbers from {made['number_prefix']}")


@app.command(name="list")
def list_(*, limit: HowMany = 1000, output: Output = DEFAULT) -> None:
    """List the entities."""
    found = Api("billing").listed(_ENTITIES, limit)
    rows = [[one["entity_id"], one["name"], one["number_prefix"], _tax(one)] for one in found.items]
    output.print_list(found, table(["ID", "NAME", "NUMBERS", "TAX"], rows))


@app.command
def show(entity_id: str, *, output: Output = DEFAULT) -> None:
    """Show an entity."""
    found = Api("billing").get(f"{_ENTITIES}/{segment(entity_id)}")
    rows = [
        ["id", found["entity_id"]],
        ["name", found["name"]],
        ["address", ", ".join(found["address"])],
        ["tax id", found["tax_id"]],
        ["numbers", found["number_prefix"]],
        ["tax", _tax(found)],
        ["note", found["tax"]["note"]],
    ]
    output.print(found, table(["", ""], rows))


@tenant_app.command
def details(
    tenant: str,
    *,
    name: str | None = None,
    address: list[str] | None = None,
    tax_id: str | None = None,
    entity: str | None = None,
    output: Output = DEFAULT,
) -> None:
    """Show to whom a tenant's statements are addressed and who issues them; options change it.

    Parameters
    ----------
    tenant
        Id or name.
    name
        As it stands on statements.
    address
        A line of it; several: repeat.
    tax_id
        Its own.
    entity
        Id of the legal entity that issues its statements from now on.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/billing-details"
    found = Api("billing").get(path)
    given = {"name": name, "address": address, "tax_id": tax_id, "entity_id": entity}
    changed = {field: value for field, value in given.items() if value is not None}
    if changed:
        kept = {field: found[field] for field in given}
        found = Api("billing").put(path, {**kept, **changed})
    rows = [
        ["tenant", found["tenant_id"]],
        ["name", found["name"]],
        ["address", ", ".join(found["address"])],
        ["tax id", found["tax_id"]],
        ["issued by", found["entity_id"]],
    ]
    output.print(found, table(["", ""], rows))


def _tax(entity: Json) -> str:
    tax = entity["tax"]
    if not tax["ppm"]:
        return "none"
    percent = f"{Decimal(tax['ppm']) / _PPM_PER_PERCENT:f}"
    return f"{tax['name']} {percent} %"


def _read_ppm(percent: str) -> int:
    try:
        ppm = Decimal(percent) * _PPM_PER_PERCENT
        exact = ppm == ppm.to_integral_value()
    except InvalidOperation as error:
        raise CommandError(
            f"{percent!r} is not a percentage; write 19 or 7.7", Exit.USAGE
        ) from error
    if not exact:
        raise CommandError(f"{percent!r} has more than 4 decimals", Exit.USAGE)
    return int(ppm)
