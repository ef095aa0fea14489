"""busbar webhook: where a tenant is told of what happens to its money, and how that went."""

from __future__ import annotations

from cyclopts import App

from busbar_cli.amounts import read_amount, show_amount
from busbar_cli.api import Api, Json
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.commands.tenants import app as tenant_app
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, err, show_moment, table

app = App(
    name="webhook",
    help="Webhooks of a tenant: create, list, set, rotate, ping, deliveries, redeliver, delete.",
)


@app.command
def create(
    tenant: str,
    url: str,
    *,
    event: list[str] | None = None,
    description: str = "",
    output: Output = DEFAULT,
) -> None:
    """Add an endpoint; its signing secret is shown this once.

    Parameters
    ----------
    tenant
        Id or name.
    url
        An https address that the public can reach.
    event
        May be repeated: what is told, such as balance.low. Default: everything.
    description
        What people note of it.
    """
    body = {"url": url, "event_types": event or [], "description": description}
    _show_secret(Api("billing").post(_path(tenant), body), output)


@app.command(name="list")
def list_(tenant: str, *, output: Output = DEFAULT) -> None:
    """List a tenant's endpoints.

    Parameters
    ----------
    tenant
        Id or name.
    """
    found: list[Json] = Api("billing").get(_path(tenant))["items"]
    rows = [
        [
            one["endpoint_id"],
            one["url"],
            ", ".join(one["event_types"]) or "all",
            _state(one),
            show_moment(one["created_at"]),
        ]
        for one in found
    ]
    columns = ["ID", "URL", "EVENTS", "STATE", "CREATED"]
    empty = "none; add one: busbar webhook create TENANT URL"
    output.print({"items": found}, table(columns, rows, empty=empty))


@app.command(name="set")
def set_(
    tenant: str,
    endpoint_id: str,
    *,
    url: str | None = None,
    event: list[str] | None = None,
    description: str | None = None,
    enabled: bool = True,
    output: Output = DEFAULT,
) -> None:
    """Change an endpoint, disable it (--no-enabled), or enable it again.

    Parameters
    ----------
    tenant
        Id or name.
    endpoint_id
        The endpoint; it keeps its secret, and whatever is not given here.
    event
        May be repeated; "all" for everything.
    """
    path = _path(tenant, endpoint_id)
    now = Api("billing").get(path)
    events = now["event_types"] if event is None else [one for one in event if one != "all"]
    body = {
        "url": url or now["url"],
        "event_types": events,
        "description": now["description"] if description is None else description,
        "enabled": enabled,
    }
    changed = Api("billing").put(path, body)
    output.print(changed, f"{endpoint_id} {_state(changed)}")


@app.command
def rotate(
    tenant: str,
    endpoint_id: str,
    *,
    old_valid_until: str | None = None,
    output: Output = DEFAULT,
) -> None:
    """Give an endpoint a new signing secret; it is shown this once.

    Parameters
    ----------
    tenant
        Id or name.
    endpoint_id
        The endpoint.
    old_valid_until
        RFC 3339 time with zone, at most 7 days ahead, until which messages are signed with the
        secret it has now, too; one overlap at a time. Default: every old secret ends now.
    """
    body = {"old_valid_until": old_valid_until}
    _show_secret(Api("billing").post(f"{_path(tenant, endpoint_id)}/rotate", body), output)


@app.command
def ping(tenant: str, endpoint_id: str, *, output: Output = DEFAULT) -> None:
    """Send a message that says nothing; `deliveries` shows what came of it.

    Parameters
    ----------
    tenant
        Id or name.
    endpoint_id
        As `list` shows it.
    """
    sent = Api("billing").post(f"{_path(tenant, endpoint_id)}/ping", {})
    output.print(sent, f"{sent['delivery_id']}  on its way")


@app.command
def deliveries(
    tenant: str, endpoint_id: str, *, limit: HowMany = 50, output: Output = DEFAULT
) -> None:
    """List what was sent to an endpoint and what came of it, newest first.

    Parameters
    ----------
    tenant
        Id or name.
    endpoint_id
        As `list` shows it.
    limit
        How many at most.
    """
    path = f"{_path(tenant, endpoint_id)}/deliveries"
    found = Api("billing").listed(path, limit)
    rows = [
        [
            one["delivery_id"],
            one["type"],
            one["state"],
            one["attempts"],
            one["last_error"] or one["last_status"],
            show_moment(one["created_at"]),
            show_moment(one["next_attempt_at"]),
        ]
        for one in found.items
    ]
    columns = ["ID", "TYPE", "STATE", "ATTEMPTS>", "ANSWER", "OF", "NEXT ATTEMPT"]
    output.print_list(found, table(columns, rows, empty="nothing was sent there"))


@app.command
def redeliver(tenant: str, endpoint_id: str, delivery_id: str, *, output: Output = DEFAULT) -> None:
    """Send a message once more, with the same webhook-id.

    Parameters
    ----------
    tenant
        Id or name.
    endpoint_id
        As `list` shows it.
    delivery_id
        As `deliveries` shows it.
    """
    path = f"{_path(tenant, endpoint_id)}/deliveries/{delivery_id}/redeliver"
    sent = Api("billing").post(path, {})
    output.print(sent, f"{delivery_id}  on its way")


@app.command
def delete(tenant: str, endpoint_id: str, *, output: Output = DEFAULT) -> None:
    """Delete an endpoint with all that waits for it.

    Parameters
    ----------
    tenant
        Id or name.
    endpoint_id
        As `list` shows it.
    """
    Api("billing").delete(_path(tenant, endpoint_id))
    output.print({"deleted": endpoint_id}, f"{endpoint_id} deleted")


@tenant_app.command(name="low-balance")
def low_balance(tenant: str, amount: str | None = None, *, output: Output = DEFAULT) -> None:
    """Show below what a tenant is told that its balance is low, or set it.

    Parameters
    ----------
    tenant
        Id or name.
    amount
        In the tenant's currency, such as 10; 0: never; "default": as the operator's setting says.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/balance/threshold"
    if amount is None:
        found = Api("billing").get(path)
    else:
        wanted = None if amount == "default" else read_amount(amount)
        found = Api("billing").put(path, {"low_balance_nanos": wanted})
    shown = show_amount(found["low_balance_nanos"], found["currency"])
    whose = " (default)" if found["is_default"] else ""
    output.print(
        found, f"told below {shown}{whose}" if found["low_balance_nanos"] else "never told"
    )


def _path(tenant: str, endpoint_id: str | None = None) -> str:
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/webhooks"
    if endpoint_id is None:
        return path
    if not endpoint_id.startswith("whe_"):
        raise CommandError(
            f"{endpoint_id!r} is not an endpoint's id (whe_...): busbar webhook list TENANT",
            Exit.USAGE,
        )
    return f"{path}/{endpoint_id}"


def _state(endpoint: Json) -> str:
    if not endpoint["enabled"]:
        return f"disabled: {endpoint['disabled_reason']}"
    since = endpoint["failing_since"]
    return f"failing since {show_moment(since)}" if since else "active"


def _show_secret(made: Json, output: Output) -> None:
    output.print(made, made["secret"])
    if not output.json:
        err().print(f"{made['endpoint_id']}: keep the secret, it is shown this once", style="dim")
