"""busbar price: versions of the price book."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from cyclopts import App
from rich.console import Group
from rich.table import Table
from rich.text import Text

from busbar_cli import plain_yaml
from busbar_cli.amounts import read_amount, show_amount
from busbar_cli.api import Api, Json, place_key
from busbar_cli.commands.tenants import find_tenant
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, Output, show_moment, show_node, table

app = App(
    name="price",
    help="The price book: list versions, show one, publish the next, end a tenant's own; energy.",
)

_PRICES = "/admin/v1/prices"
_ENERGY_PRICES = "/admin/v1/energy-prices"
_ENERGY_PRICES_SHOWN = 1_000
_FILE_BYTES_MAX = 1024 * 1024


@app.command(name="list")
def list_(*, tenant: str | None = None, output: Output = DEFAULT) -> None:
    """List the versions, newest first.

    Parameters
    ----------
    tenant
        Id or name; only prices that are this tenant's alone.
    """
    books = Api("billing").get(_PRICES)["items"]
    ends = ends_of(books)
    if tenant is not None:
        tenant_id = find_tenant(tenant)["tenant_id"]
        books = [one for one in books if one["tenant_id"] == tenant_id]
    rows = [
        [
            one["version"],
            one["tenant_id"] or "everybody",
            one["currency"],
            show_moment(one["effective_from"]),
            show_moment(ends[one["version"]]),
            "active" if one["in_force"] else "",
            len(one["classes"]),
            one["note"],
        ]
        for one in books
    ]
    columns = ["VERSION>", "FOR", "CURRENCY", "FROM", "UNTIL", "", "CLASSES>", "NOTE"]
    output.print({"items": books}, table(columns, rows))


def ends_of(books: list[Json]) -> dict[int, str | None]:
    """Until when each version holds: until its own end or the next of its line begins."""
    ends: dict[int, str | None] = {}
    following: dict[tuple[str, str | None], str] = {}
    latest_first = sorted(
        books, key=lambda one: datetime.fromisoformat(one["effective_from"]), reverse=True
    )
    for one in latest_first:
        line = (one["currency"], one["tenant_id"])
        known = [end for end in (one["effective_until"], following.get(line)) if end is not None]
        ends[one["version"]] = min(known, key=datetime.fromisoformat, default=None)
        following[line] = one["effective_from"]
    return ends


@app.command
def show(version: int, *, output: Output = DEFAULT) -> None:
    """Show every price of a version.

    Parameters
    ----------
    version
        Its number.
    """
    books = Api("billing").get(_PRICES)["items"]
    book = next((one for one in books if one["version"] == version), None)
    if book is None:
        raise CommandError(f"there is no price book {version}: busbar price list", Exit.NOT_FOUND)
    output.print(book, _price_table(book))


def _price_table(book: Json) -> Table | Text:
    rows = [
        row
        for name, prices in sorted(book["classes"].items())
        for component, price in sorted(prices.items())
        for row in _price_rows(name, component, price, book["currency"])
    ]
    return table(["CLASS", "COMPONENT", "ABOVE>", "PRICE>", "UNITS>"], rows)


def _price_rows(name: str, component: str, price: Json, currency: str) -> list[list[object]]:
    """A row for each step of a price, by the month's quantity."""
    steps = [{**price, "above_units": price["free_units"]}, *price["tiers"]]
    if price["free_units"]:
        steps.insert(0, {**price, "above_units": 0, "amount_nanos": 0})
    return [
        [
            name,
            component,
            f"{step['above_units']:,}",
            show_amount(step["amount_nanos"], currency),
            f"{step['per_units']:,}",
        ]
        for step in steps
    ]


@app.command
def publish(
    file: Path,
    *,
    tenant: str | None = None,
    since: str | None = None,
    until: str | None = None,
    note: str | None = None,
    output: Output = DEFAULT,
) -> None:
    """Publish the next version of everybody's prices, or of one tenant's, and show what it says.

    It ends the version that holds when it begins, also one with an end that is not reached: so a
    mistaken one is ended early. Once a version with an end is over everybody's prices hold.

    Parameters
    ----------
    file
        YAML or JSON: `classes`, and if wanted `currency` and `charge_quantum_nanos`, as in
        `busbar price show VERSION --json`.
    tenant
        Id or name; these prices are this tenant's alone.
    since
        RFC 3339 time with zone from which they hold; when not given in ten seconds, which is as
        soon as may be: gateways have to know them before.
    until
        RFC 3339 time with zone at which a tenant's own prices end.
    note
        Why, for people.
    """
    content = _read(file)
    body: Json = {
        key: content[key]
        for key in ("classes", "currency", "charge_quantum_nanos")
        if key in content
    }
    given = {
        "tenant_id": find_tenant(tenant)["tenant_id"] if tenant is not None else None,
        "effective_from": since,
        "effective_until": until,
        "note": note,
    }
    body |= {key: value for key, value in given.items() if value is not None}
    book = Api("billing").post(_PRICES, body)
    whose = book["tenant_id"] or "everybody"
    said = f"price book {book['version']} for {whose} from {show_moment(book['effective_from'])}"
    said += "".join(f"\n{line}" for line in what_changes(book))
    if left := book["left_to_default"]:
        said += f"\nwarning: it has no class {', '.join(left)}: charged by its class default"
    output.print(book, Group(Text(said), _price_table(book)))


@app.command
def end(
    *,
    tenant: str,
    since: str | None = None,
    note: str | None = None,
    output: Output = DEFAULT,
) -> None:
    """End a tenant's own prices: from then on everybody's hold for it.

    The version that holds is followed by one with the same prices, which ends then. Versions that
    were published to begin later stay as they are.

    Parameters
    ----------
    tenant
        Id or name.
    since
        RFC 3339 time with zone from which everybody's prices hold; when not given in ten seconds,
        which is as soon as may be.
    note
        Why, for people.
    """
    body: Json = {"tenant_id": find_tenant(tenant)["tenant_id"]}
    given = {"effective_until": since, "note": note}
    body |= {key: value for key, value in given.items() if value is not None}
    book = Api("billing").post(f"{_PRICES}/ends", body)
    after, ends = book["followed_by"], show_moment(book["effective_until"])
    said = f"the prices of {book['tenant_id']} end at {ends}; then price book {after['version']}"
    output.print(book, f"{said} holds, which is everybody's")


def what_changes(book: Json) -> list[str]:
    """What a new version ends, and what holds after it."""
    said: list[str] = []
    ended, after = book["ends"], book["followed_by"]
    if ended:
        until = ended["effective_until"]
        would = f"would have held until {show_moment(until)}" if until else "had no end"
        said.append(f"it ends price book {ended['version']}, which {would}")
    if after:
        whose = "" if after["tenant_id"] == book["tenant_id"] else ", everybody's,"
        again = f"; price book {ended['version']} does not come back" if ended else ""
        said.append(f"once it has ended price book {after['version']}{whose} holds{again}")
    return said


@app.command
def energy(
    site: str | None = None,
    amount: str | None = None,
    *,
    currency: str = "USD",
    since: str | None = None,
    output: Output = DEFAULT,
) -> None:
    """Set what a kilowatt-hour costs at a site, or list what was set, newest first.

    Measured work is booked at that price.

    Parameters
    ----------
    site
        region/site.
    amount
        For a kilowatt-hour, such as 0.12; below zero when we are paid to take it. Without it:
        list.
    currency
        Of the amount.
    since
        RFC 3339 time with zone from which it holds; now when not given.
    """
    if site is not None:
        site = show_node(place_key(site, "region/site"))
    if site is None or amount is None:
        _list_energy(site, output)
        return
    body: Json = {"site": site, "kwh_nanos": read_amount(amount), "currency": currency}
    if since is not None:
        body["effective_from"] = since
    price = Api("billing").post(_ENERGY_PRICES, body)
    shown = show_amount(price["kwh_nanos"], price["currency"])
    begins = show_moment(price["effective_from"])
    output.print(price, f"a kWh at {price['site']} costs {shown} from {begins}")


def _list_energy(site: str | None, output: Output) -> None:
    listed = Api("billing").get(_ENERGY_PRICES, limit=_ENERGY_PRICES_SHOWN)["items"]
    found = [one for one in listed if site in {None, one["site"]}]
    rows = [
        [
            one["site"],
            show_moment(one["effective_from"]),
            show_amount(one["kwh_nanos"], one["currency"]),
        ]
        for one in found
    ]
    columns = ["SITE", "FROM", "A KWH>"]
    output.print({"items": found}, table(columns, rows, empty="no energy prices"))


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _FILE_BYTES_MAX:
            raise CommandError(f"{file} is larger than {_FILE_BYTES_MAX} bytes", Exit.USAGE)
        content: Any = plain_yaml.load(file.read_text())
    except FileNotFoundError as error:
        raise CommandError(f"there is no file {file}", Exit.USAGE) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CommandError(f"{file} cannot be read: {error}", Exit.USAGE) from error
    if not isinstance(content, dict) or "classes" not in content:
        raise CommandError(f"{file} is not a price book: it has no `classes`", Exit.USAGE)
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:  # YAML knows more: dates, .nan, .inf
        raise CommandError(f"{file} is not a price book: {error}", Exit.USAGE) from error
    return content
