"""busbar key: API keys."""

from __future__ import annotations

import re

from cyclopts import App

from busbar_cli.api import Api, Json
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, err, show_moment, table

app = App(name="key", help="API keys: create, list, revoke.")

_KEY_ID = re.compile(r"key_[0-9a-f]{32}")


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
        One that is not declared yet is allowed, with a warning: deployments come and go.
    expires
        RFC 3339 time with zone after which it is refused. Default: never.
    """
    body = {"name": name, "deployments": deployment or [], "expires_at": expires}
    made = Api("billing").post(f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/keys", body)
    undeclared = _undeclared(deployment or [])
    if undeclared is not None:
        made["undeclared_deployments"] = undeclared
    output.print(made, made["key"])
    if undeclared:
        named = ", ".join(undeclared)
        err().print(f"not declared now: {named}; is that what you meant?", style="yellow")
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
    if not _KEY_ID.fullmatch(key_id):
        raise CommandError(
            f"{key_id!r} is not a key's id (key_ and 32 hex digits): busbar key list TENANT",
            Exit.USAGE,
        )
    revoked = Api("billing").delete(f"/admin/v1/keys/{key_id}")
    output.print(revoked, f"{key_id} revoked")
    if not revoked["propagated"]:
        err().print("the bus is away: gateways learn of it when it is back", style="yellow")


def _undeclared(deployments: list[str]) -> list[str] | None:
    """Which of these nobody has declared; None when the scheduler cannot say."""
    if not deployments:
        return []
    try:
        items: list[Json] = Api("scheduler").get("/admin/v1/deployments")["items"]
    except CommandError:
        return None
    declared = {one["name"] for one in items}
    return [name for name in deployments if name not in declared]
