"""The customers' API of projects and keys: the calling tenant's own."""

from __future__ import annotations

from fastapi import APIRouter

from busbar_billing.adapters.http import schemas, tenancy_schemas
from busbar_billing.adapters.http.account import PREFIX
from busbar_billing.adapters.http.account_view import CallingDeployments, CallingTenant, Own
from busbar_billing.adapters.http.keys import (
    Prefix,
    ProjectFilter,
    create_for,
    rotate_for,
    show_change,
)
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.projects import create_project, projects_page
from busbar_billing.adapters.http.showing import show_key
from busbar_billing.adapters.http.tenancy_schemas import show_project
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.usecases.keys import KeyDesk, revoke_key


def project_routes(projects: Projects) -> APIRouter:
    """POST, GET /projects; GET, DELETE /projects/{id}."""
    router = APIRouter(prefix=PREFIX, tags=["projects"])

    @router.post("/projects", status_code=201)
    async def create(
        tenant_id: CallingTenant, wanted: tenancy_schemas.WantedProject
    ) -> tenancy_schemas.ProjectAnswer:
        """Create a project."""
        return await create_project(projects, tenant_id, wanted)

    @router.get("/projects")
    async def list_all(
        tenant_id: CallingTenant, own: Own, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[tenancy_schemas.ProjectAnswer]:
        """List your projects."""
        return await projects_page(own.projects, tenant_id, limit, cursor)

    @router.get("/projects/{project_id}")
    async def get(
        tenant_id: CallingTenant, own: Own, project_id: str
    ) -> tenancy_schemas.ProjectAnswer:
        """Read one project."""
        return show_project(await own.projects.get(project_id, tenant_id))

    @router.delete("/projects/{project_id}")
    async def archive(tenant_id: CallingTenant, project_id: str) -> tenancy_schemas.ProjectAnswer:
        """Archive a project that has no keys left."""
        return show_project(await projects.archive(project_id, tenant_id))

    return router


def key_routes(desk: KeyDesk) -> APIRouter:
    """POST, GET /keys; GET, DELETE /keys/{id}; POST /keys/{id}/rotate."""
    router = APIRouter(prefix=PREFIX, tags=["keys"])

    @router.post("/keys", status_code=201)
    async def create(
        tenant_id: CallingTenant, asked_with: CallingDeployments, wanted: schemas.WantedKey
    ) -> schemas.NewKeyAnswer:
        """Create a key, which is shown this once."""
        return await create_for(desk, tenant_id, wanted, asked_with)

    @router.get("/keys")
    async def list_all(
        *,
        tenant_id: CallingTenant,
        own: Own,
        prefix: Prefix | None = None,
        project_id: ProjectFilter = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[schemas.KeyAnswer]:
        """List your keys."""
        after = decode_cursor(cursor, "")
        if project_id is not None:
            await own.projects.get(project_id, tenant_id)
        if prefix is None:
            rows = await own.keys.of_tenant(tenant_id, limit + 1, after, project_id)
        else:
            found = await own.keys.by_prefix(prefix, tenant_id)
            rows = [row for row in found if project_id in (None, row.key.project_id)]
            rows = [row for row in rows if row.key.key_id > after][: limit + 1]
        return page(rows, limit, lambda row: row.key.key_id, show_key)

    @router.get("/keys/{key_id}")
    async def get(tenant_id: CallingTenant, own: Own, key_id: str) -> schemas.KeyAnswer:
        """Read one key."""
        return show_key(await own.keys.get(key_id, tenant_id))

    @router.post("/keys/{key_id}/rotate")
    async def rotate(
        tenant_id: CallingTenant,
        asked_with: CallingDeployments,
        key_id: str,
        wanted: schemas.WantedRotation,
    ) -> schemas.NewKeyAnswer:
        """Replace a key; the old one works on for the overlap."""
        return await rotate_for(desk, key_id, tenant_id, wanted, asked_with)

    @router.delete("/keys/{key_id}")
    async def revoke(
        tenant_id: CallingTenant, asked_with: CallingDeployments, key_id: str
    ) -> schemas.ChangedKeyAnswer:
        """Revoke a key; 403 when it may be used for more than yours."""
        done = await revoke_key(desk, key_id, tenant_id=tenant_id, asked_with=asked_with)
        return show_change(done)

    return router
