"""Routes of API keys."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter
from uuid_utils.compat import uuid7

from busbar_billing.adapters.bus.events import Events
from busbar_billing.adapters.bus.key_directory import KeyDirectoryBucket
from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.showing import show_key
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.keys import SECRET_BYTES
from busbar_billing.usecases.keys import NewKey, create_key, revoke_key

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def key_routes(
    keys: Keys, tenants: Tenants, directory: KeyDirectoryBucket, events: Events, hmac_secret: bytes
) -> APIRouter:
    """POST, GET /tenants/{id}/keys; DELETE /keys/{id}."""
    router = APIRouter(prefix="/admin/v1", tags=["keys"])

    @router.post("/tenants/{tenant_id}/keys", status_code=201)
    async def create(tenant_id: str, wanted: schemas.WantedKey) -> schemas.NewKeyAnswer:
        text, change = await create_key(
            keys,
            directory,
            events,
            NewKey(tenant_id, wanted.name, wanted.deployments, _unix_ms(wanted.expires_at)),
            key_id=f"key_{uuid7().hex}",
            secret=secrets.token_bytes(SECRET_BYTES),
            hmac_secret=hmac_secret,
            now_unix_ms=time.time_ns() // 1_000_000,
        )
        shown = show_key(change.stored).model_dump()
        return schemas.NewKeyAnswer(**shown, propagated=change.propagated, key=text)

    @router.get("/tenants/{tenant_id}/keys")
    async def list_of_tenant(
        tenant_id: str, limit: Limit = PAGE_DEFAULT, cursor: Cursor = None
    ) -> schemas.Page[schemas.KeyAnswer]:
        await tenants.get(tenant_id)
        rows = await keys.of_tenant(tenant_id, limit + 1, decode_cursor(cursor, ""))
        return page(rows, limit, lambda row: row.key.key_id, show_key)

    @router.delete("/keys/{key_id}")
    async def revoke(key_id: str) -> schemas.ChangedKeyAnswer:
        change = await revoke_key(keys, directory, events, key_id)
        shown = show_key(change.stored).model_dump()
        return schemas.ChangedKeyAnswer(**shown, propagated=change.propagated)

    return router


def _unix_ms(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // timedelta(milliseconds=1)
