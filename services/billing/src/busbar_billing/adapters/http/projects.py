"""Routes of projects, for operators."""

from __future__ import annotations

from fastapi import APIRouter
from uuid_utils.compat import uuid7

from busbar_billing.adapters.http import tenancy_schemas as schemas
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.schemas import Page
from busbar_billing.adapters.http.tenancy_schemas import show_project
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.names import checked_name


def project_routes(projects: Projects, tenants: Tenants) -> APIRouter:
    """POST, GET /tenants/{id}/projects; GET, DELETE /projects/{id}."""
    router = APIRouter(prefix="/admin/v1", tags=["projects"])

    @router.post("/tenants/{tenant_id}/projects", status_code=201)
    async def create(tenant_id: str, wanted: schemas.WantedProject) -> schemas.ProjectAnswer:
        """Create a project of a tenant."""
        return await create_project(projects, tenant_id, wanted)

    @router.get("/tenants/{tenant_id}/projects")
    async def list_of_tenant(
        tenant_id: str, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> Page[schemas.ProjectAnswer]:
        """List a tenant's projects."""
        await tenants.get(tenant_id)
        return await projects_page(projects, tenant_id, limit, cursor)

    @router.get("/projects/{project_id}")
    async def get(project_id: str) -> schemas.ProjectAnswer:
        """Read one project."""
        return show_project(await projects.get(project_id, None))

    @router.delete("/projects/{project_id}")
    async def archive(project_id: str) -> schemas.ProjectAnswer:
        """Archive a project that has no keys left."""
        return show_project(await projects.archive(project_id, None))

    return router


async def create_project(
    projects: Projects, tenant_id: str, wanted: schemas.WantedProject
) -> schemas.ProjectAnswer:
    """Create a project of a tenant."""
    made = await projects.add(f"prj_{uuid7().hex}", tenant_id, checked_name(wanted.name))
    return show_project(made)


async def projects_page(
    projects: Projects, tenant_id: str, limit: int, cursor: str | None
) -> Page[schemas.ProjectAnswer]:
    """A page of a tenant's projects."""
    rows = await projects.page(tenant_id, limit + 1, decode_cursor(cursor, ""))
    return page(rows, limit, lambda row: row.project_id, show_project)
