"""Routes of API keys, for operators."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from uuid_utils.compat import uuid7

from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.showing import show_key
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.keys import SECRET_BYTES
from busbar_billing.usecases.keys import (
    Change,
    KeyDesk,
    NewKey,
    create_key,
    revoke_key,
    rotate_key,
)

ProjectFilter = Annotated[str | None, Query(max_length=80)]
Prefix = Annotated[str, Query(min_length=1, max_length=80, examples=["bb_abc123"])]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def key_routes(keys: Keys, tenants: Tenants, projects: Projects, desk: KeyDesk) -> APIRouter:
    """POST, GET /tenants/{id}/keys; GET /keys by prefix; GET, DELETE /keys/{id}; its rotation."""
    router = APIRouter(prefix="/admin/v1", tags=["keys"])

    @router.post("/tenants/{tenant_id}/keys", status_code=201)
    async def create(tenant_id: str, wanted: schemas.WantedKey) -> schemas.NewKeyAnswer:
        """Create a key for a tenant, which is shown this once."""
        return await create_for(desk, tenant_id, wanted)

    @router.get("/tenants/{tenant_id}/keys")
    async def list_of_tenant(
        tenant_id: str,
        project_id: ProjectFilter = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[schemas.KeyAnswer]:
        """List a tenant's keys."""
        await tenants.get(tenant_id)
        if project_id is not None:
            await projects.get(project_id, tenant_id)
        after = decode_cursor(cursor, "")
        rows = await keys.of_tenant(tenant_id, limit + 1, after, project_id)
        return page(rows, limit, lambda row: row.key.key_id, show_key)

    @router.get("/keys")
    async def find(prefix: Prefix) -> schemas.Page[schemas.KeyAnswer]:
        """Find keys by their prefix."""
        rows = await keys.by_prefix(prefix, None)
        return schemas.Page(items=[show_key(row) for row in rows], next_cursor=None)

    @router.get("/keys/{key_id}")
    async def get(key_id: str) -> schemas.KeyAnswer:
        """Read one key."""
        return show_key(await keys.get(key_id, None))

    @router.post("/keys/{key_id}/rotate")
    async def rotate(key_id: str, wanted: schemas.WantedRotation) -> schemas.NewKeyAnswer:
        """Replace a key; the old one works on for the overlap."""
        return await rotate_for(desk, key_id, None, wanted)

    @router.delete("/keys/{key_id}")
    async def revoke(key_id: str) -> schemas.ChangedKeyAnswer:
        """Revoke a key."""
        return show_change(await revoke_key(desk, key_id, tenant_id=None))

    return router


async def create_for(
    desk: KeyDesk, tenant_id: str, wanted: schemas.WantedKey, asked_with: Collection[str] = ()
) -> schemas.NewKeyAnswer:
    """Create a key of a tenant, for no more deployments than `asked_with` unless that is empty."""
    text, change = await create_key(
        desk,
        NewKey(
            tenant_id=tenant_id,
            name=wanted.name,
            deployments=wanted.deployments,
            expires_unix_ms=_unix_ms(wanted.expires_at),
            scopes=wanted.scopes,
            project_id=wanted.project_id,
            asked_with=asked_with,
        ),
        key_id=f"key_{uuid7().hex}",
        secret=secrets.token_bytes(SECRET_BYTES),
        now_unix_ms=_now_ms(),
    )
    return schemas.NewKeyAnswer(**show_change(change).model_dump(), key=text)


async def rotate_for(
    desk: KeyDesk,
    key_id: str,
    tenant_id: str | None,
    wanted: schemas.WantedRotation,
    asked_with: Collection[str] = (),
) -> schemas.NewKeyAnswer:
    """Give a key a new secret; `tenant_id` None: whosever it is. `asked_with` as in create_for."""
    text, change = await rotate_key(
        desk,
        key_id,
        tenant_id=tenant_id,
        secret=secrets.token_bytes(SECRET_BYTES),
        old_until_unix_ms=_unix_ms(wanted.old_valid_until),
        now_unix_ms=_now_ms(),
        asked_with=asked_with,
    )
    return schemas.NewKeyAnswer(**show_change(change).model_dump(), key=text)


def show_change(change: Change) -> schemas.ChangedKeyAnswer:
    """A key after a change."""
    shown = show_key(change.stored).model_dump()
    return schemas.ChangedKeyAnswer(**shown, propagated=change.propagated)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _unix_ms(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // timedelta(milliseconds=1)
