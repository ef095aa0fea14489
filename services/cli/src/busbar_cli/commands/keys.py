"""busbar key: API keys."""

from __future__ import annotations

from cyclopts import App

from busbar_cli.api import Api
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.output import DEFAULT, HowMany, Output, err, show_moment, table

app = App(name="key", help="API keys: create, list, revoke.")


@app.command
def create(
    tenant: str,
    *,
    name: str = "default",
    deployment: list[str] | None = None,
    expires: str | None = None,
    output: Output = DEFAULT,
) -> None:
    """Create an API key; it is shown this once.

    Parameters
    ----------
    tenant
        Id or name of who pays.
    name
        What people call it.
    deployment
        May be repeated: what it may use. Default: every deployment open to the tenant.
    expires
        RFC 3339 time with zone after which it is refused. Default: never.
    """
    body = {"name": name, "deployments": deployment or [], "expires_at": expires}
    made = Api("billing").post(f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/keys", body)
    output.print(made, made["key"])
    if not output.json:
        err().print(f"key {made['key_id']}: keep it, it is not stored anywhere", style="dim")
    if not made["propagated"]:
        err().print("the bus is away: gateways learn of it when it is back", style="yellow")


@app.command(name="list")
def list_(tenant: str, *, limit: HowMany = 1000, output: Output = DEFAULT) -> None:
    """List a tenant's keys."""
    keys = list(Api("billing").pages(f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/keys", limit))
    rows = [
        [
            one["key_id"],
            one["name"],
            one["prefix"],
            ", ".join(one["deployments"]) or "all",
            show_moment(one["expires_at"]) or "never",
            "revoked" if one["revoked_at"] else "active",
            show_moment(one["created_at"]),
        ]
        for one in keys
    ]
    columns = ["ID", "NAME", "PREFIX", "DEPLOYMENTS", "EXPIRES", "STATE", "CREATED"]
    output.print({"items": keys}, table(columns, rows))


@app.command
def revoke(key_id: str, *, output: Output = DEFAULT) -> None:
    """Revoke a key; gateways refuse it within a second."""
    revoked = Api("billing").delete(f"/admin/v1/keys/{key_id}")
    output.print(revoked, f"{key_id} revoked")
    if not revoked["propagated"]:
        err().print("the bus is away: gateways learn of it when it is back", style="yellow")
