"""Projects, as rows."""

from __future__ import annotations

import asyncpg
from busbar_errors import Conflict, NotFound, Rejected

from busbar_billing.adapters.postgres.database import Connections
from busbar_billing.domain.names import PROJECTS_PER_TENANT_MAX, is_project_id, is_tenant_id
from busbar_billing.usecases.projects import Project

_LOCK_TENANT = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_COUNT = "SELECT count(*) FROM projects WHERE tenant_id = $1"
_ADD = "INSERT INTO projects (project_id, tenant_id, name) VALUES ($1, $2, $3) RETURNING *"
_ONE = "SELECT * FROM projects WHERE project_id = $1 AND ($2::text IS NULL OR tenant_id = $2)"
_PAGE = """
    SELECT * FROM projects WHERE tenant_id = $1 AND project_id > $2 ORDER BY project_id LIMIT $3
"""
_IN_USE = "SELECT count(*) FROM api_keys WHERE project_id = $1 AND revoked_at IS NULL"
_ARCHIVE = """
    UPDATE projects SET archived_at = coalesce(archived_at, now()) WHERE project_id = $1 RETURNING *
"""


class Projects:
    """Where projects are kept. `tenant_id` given: projects of others are not there."""

    def __init__(self, database: Connections) -> None:
        self._database = database

    async def add(self, project_id: str, tenant_id: str, name: str) -> Project:
        """Add one; raise NotFound when there is no such tenant, Conflict when the name is taken,
        Rejected when the tenant has PROJECTS_PER_TENANT_MAX."""
        if not is_tenant_id(tenant_id):
            raise NotFound(f"there is no tenant {tenant_id[:80]!r}")
        async with self._database.transaction() as connection:
            await connection.execute(_LOCK_TENANT, tenant_id)
            if await connection.fetchval(_COUNT, tenant_id) >= PROJECTS_PER_TENANT_MAX:
                raise Rejected(
                    f"tenant {tenant_id} has {PROJECTS_PER_TENANT_MAX} projects, archived ones "
                    "included, as many as one may have"
                )
            try:
                row = await connection.fetchrow(_ADD, project_id, tenant_id, name)
            except asyncpg.ForeignKeyViolationError as error:
                raise NotFound(f"there is no tenant {tenant_id!r}") from error
            except asyncpg.UniqueViolationError as error:
                raise Conflict(f"there is a project called {name!r} already") from error
            assert row is not None
            return _read_project(row)

    async def get(self, project_id: str, tenant_id: str | None) -> Project:
        """Raise NotFound when there is none."""
        row = None
        if is_project_id(project_id):
            async with self._database.connection() as connection:
                row = await connection.fetchrow(_ONE, project_id, tenant_id)
        return _read_project(_found(row, project_id))

    async def page(self, tenant_id: str, limit: int, after: str) -> list[Project]:
        """A tenant's projects, oldest first, from the first after `after`; archived ones too."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_PAGE, tenant_id, after, limit)
        return [_read_project(row) for row in rows]

    async def archive(self, project_id: str, tenant_id: str | None) -> Project:
        """Archive, or return it as it is when it is archived already. Raise NotFound, or Conflict
        while it has keys that are not revoked."""
        project = await self.get(project_id, tenant_id)
        async with self._database.transaction() as connection:
            # The lock of whoever adds a key to it.
            await connection.execute(_LOCK_TENANT, project.tenant_id)
            if keys := await connection.fetchval(_IN_USE, project_id):
                raise Conflict(f"project {project_id} has {keys} keys: revoke them first")
            row = await connection.fetchrow(_ARCHIVE, project_id)
        return _read_project(_found(row, project_id))


def _found(row: asyncpg.Record | None, project_id: str) -> asyncpg.Record:
    if row is None:
        raise NotFound(f"there is no project {project_id[:80]!r}")
    return row


def _read_project(row: asyncpg.Record) -> Project:
    return Project(
        row["project_id"], row["tenant_id"], row["name"], row["created_at"], row["archived_at"]
    )
