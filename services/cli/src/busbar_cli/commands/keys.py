"""busbar key: API keys."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

from cyclopts import App

from busbar_cli.api import Api, Json, Listed, segment
from busbar_cli.commands.plans import AWAY
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.failures import CommandError, Exit
from busbar_cli.output import DEFAULT, HowMany, Output, err, show_moment, table

app = App(name="key", help="API keys: create, list, find, show, rotate, revoke.")

Scope = Literal["serve", "read_usage", "administer"]
_PREFIX_CHARACTERS = 9
_KEY_ID = re.compile(r"key_[0-9a-f]{32}")


@app.command
def create(
    tenant: str,
    *,
    name: str = "default",
    project: str | None = None,
    scope: list[Scope] | None = None,
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
    project
        Id of the project it belongs to. Default: the tenant's default project.
    scope
        May be repeated: serve calls models, read_usage reads usage and balance, administer manages
        keys and projects. Default: serve.
    deployment
        May be repeated: what it may use. Default: every deployment open to the tenant.
        One that is not declared yet is allowed, with a warning: deployments come and go.
    expires
        RFC 3339 time with zone after which it is refused. Default: never.
    """
    body = {
        "name": name,
        "project_id": project,
        "scopes": scope or ["serve"],
        "deployments": deployment or [],
        "expires_at": expires,
    }
    made = Api("billing").post(f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/keys", body)
    undeclared = _undeclared(deployment or [])
    if undeclared is not None:
        made["undeclared_deployments"] = undeclared
    _show_once(made, output)
    if undeclared:
        named = ", ".join(undeclared)
        err().print(f"not declared now: {named}; is that what you meant?", style="yellow")


@app.command(name="list")
def list_(tenant: str, *, limit: HowMany = 1000, output: Output = DEFAULT) -> None:
    """List a tenant's keys, the oldest first.

    Parameters
    ----------
    tenant
        Id or name.
    limit
        How many at most.
    """
    keys = Api("billing").listed(f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/keys", limit)
    _print_keys(keys, output)


@app.command
def find(prefix: str, *, output: Output = DEFAULT) -> None:
    """Find whose key begins so, by its first characters, the one before a rotation too.

    Parameters
    ----------
    prefix
        The first nine characters of the key, as lists show them; more are not sent.
    """
    keys = Api("billing").get("/admin/v1/keys", prefix=prefix[:_PREFIX_CHARACTERS])["items"]
    _print_keys(Listed(keys, more=False), output)


@app.command
def show(key_id: str, *, output: Output = DEFAULT) -> None:
    """Show a key, without the key itself.

    Parameters
    ----------
    key_id
        As `list` shows it: key_…
    """
    _check_key_id(key_id)
    found = Api("billing").get(f"/admin/v1/keys/{segment(key_id)}")
    before = found["previous_secret"]
    rows = [
        ["id", found["key_id"]],
        ["tenant", found["tenant_id"]],
        ["project", found["project_id"] or "default"],
        ["name", found["name"]],
        ["prefix", found["prefix"]],
        ["scopes", ", ".join(found["scopes"])],
        ["deployments", ", ".join(found["deployments"]) or "all"],
        ["state", state_of(found, datetime.now(UTC))],
        ["expires", show_moment(found["expires_at"]) or "never"],
        ["revoked", show_moment(found["revoked_at"]) or "no"],
        ["last used", show_moment(found["last_used_at"]) or "never"],
        ["before it", f"{before['prefix']} until {show_moment(before['valid_until'])}"]
        if before
        else ["before it", "none"],
    ]
    output.print(found, table(["", ""], rows))


@app.command
def rotate(key_id: str, *, old_valid_until: str | None = None, output: Output = DEFAULT) -> None:
    """Give a key a new secret; it is shown this once.

    Parameters
    ----------
    key_id
        The key; it keeps its id, name, scopes and usage.
    old_valid_until
        RFC 3339 time with zone, at most 7 days ahead, until which the secret it has now is
        accepted; one overlap at a time. Default: every old secret ends now.
    """
    _check_key_id(key_id)
    body = {"old_valid_until": old_valid_until}
    _show_once(Api("billing").post(f"/admin/v1/keys/{segment(key_id)}/rotate", body), output)


def state_of(key: Json, now: datetime) -> str:
    """Whether a key is accepted: active, and else why not."""
    if key["revoked_at"]:
        return "revoked"
    ends = key["expires_at"]
    return "expired" if ends and datetime.fromisoformat(ends) <= now else "active"


def _print_keys(keys: Listed, output: Output) -> None:
    now = datetime.now(UTC)
    rows = [
        [
            one["key_id"],
            one["tenant_id"],
            one["name"],
            one["prefix"],
            ", ".join(one["scopes"]),
            ", ".join(one["deployments"]) or "all",
            show_moment(one["expires_at"]) or "never",
            state_of(one, now),
            show_moment(one["last_used_at"]) or "never",
            show_moment(one["created_at"]),
        ]
        for one in keys.items
    ]
    columns = ["ID", "TENANT", "NAME", "PREFIX", "SCOPES", "DEPLOYMENTS", "EXPIRES", "STATE"]
    output.print_list(keys, table([*columns, "LAST USED", "CREATED"], rows))


def _show_once(made: Json, output: Output) -> None:
    output.print(made, made["key"])
    if not output.json:
        err().print(f"key {made['key_id']}: keep it, it is not stored anywhere", style="dim")
    if not made["propagated"]:
        err().print(AWAY, style="yellow")


@app.command
def revoke(key_id: str, *, output: Output = DEFAULT) -> None:
    """Revoke a key; gateways refuse it within a second.

    Parameters
    ----------
    key_id
        As `list` or `find` shows it: key_…
    """
    _check_key_id(key_id)
    revoked = Api("billing").delete(f"/admin/v1/keys/{segment(key_id)}")
    output.print(revoked, f"{key_id} revoked")
    if not revoked["propagated"]:
        err().print(AWAY, style="yellow")


def _check_key_id(key_id: str) -> None:
    if not _KEY_ID.fullmatch(key_id):
        raise CommandError(
            f"{key_id!r} is not a key's id (key_ and 32 hex digits): busbar key list TENANT",
            Exit.USAGE,
        )


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
