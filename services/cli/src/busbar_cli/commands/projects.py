"""busbar project: what a tenant sorts its keys and its usage by."""

from __future__ import annotations

from cyclopts import App

from busbar_cli.api import Api, segment
from busbar_cli.commands.tenants import TENANTS, find_tenant
from busbar_cli.output import DEFAULT, HowMany, Output, show_moment, table

app = App(name="project", help="Projects of a tenant: create, list, show, archive.")


@app.command
def create(tenant: str, name: str, *, output: Output = DEFAULT) -> None:
    """Create a project.

    Parameters
    ----------
    tenant
        Id or name of whose it is.
    name
        What people call it.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/projects"
    made = Api("billing").post(path, {"name": name})
    output.print(made, f"{made['project_id']}  {made['name']}")


@app.command(name="list")
def list_(tenant: str, *, limit: HowMany = 1000, output: Output = DEFAULT) -> None:
    """List a tenant's projects.

    Parameters
    ----------
    tenant
        Id or name.
    limit
        How many at most.
    """
    path = f"{TENANTS}/{find_tenant(tenant)['tenant_id']}/projects"
    projects = Api("billing").listed(path, limit)
    rows = [
        [
            one["project_id"],
            one["name"],
            "archived" if one["archived_at"] else "open",
            show_moment(one["created_at"]),
        ]
        for one in projects.items
    ]
    output.print_list(projects, table(["ID", "NAME", "STATE", "CREATED"], rows))


@app.command
def show(project_id: str, *, output: Output = DEFAULT) -> None:
    """Show a project.

    Parameters
    ----------
    project_id
        As `list` shows it.
    """
    found = Api("billing").get(f"/admin/v1/projects/{segment(project_id)}")
    state = f"archived {show_moment(found['archived_at'])}" if found["archived_at"] else "open"
    rows = [
        ["id", found["project_id"]],
        ["tenant", found["tenant_id"]],
        ["name", found["name"]],
        ["state", state],
        ["created", show_moment(found["created_at"])],
    ]
    output.print(found, table(["", ""], rows))


@app.command
def archive(project_id: str, *, output: Output = DEFAULT) -> None:
    """Archive a project without keys; no key can be added to it any more.

    Parameters
    ----------
    project_id
        As `list` shows it.
    """
    archived = Api("billing").delete(f"/admin/v1/projects/{segment(project_id)}")
    output.print(archived, f"{project_id} archived")
