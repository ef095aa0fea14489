"""Routes of webhook endpoints and of the balance's threshold: the same for a tenant and for the
operator, who names the tenant in the path."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends
from uuid_utils.compat import uuid4

from busbar_billing.adapters.http import webhook_schemas as schemas
from busbar_billing.adapters.http.paging import PAGE_DEFAULT, Cursor, Limit, decode_cursor, page
from busbar_billing.adapters.http.schemas import Page
from busbar_billing.adapters.http.webhook_schemas import (
    show_delivery,
    show_threshold,
    show_webhook,
)
from busbar_billing.adapters.postgres.balance_watches import BalanceWatches
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.adapters.postgres.webhooks import Webhooks
from busbar_billing.domain.webhooks import SALT_BYTES, Endpoint
from busbar_billing.usecases.webhooks import (
    WebhookDesk,
    change_endpoint,
    create_endpoint,
    ping,
    rotate_secret,
)

_AFTER_ALL = "\x7f"


def named_tenant(tenants: Tenants) -> Callable[[str], Awaitable[str]]:
    """The tenant that an operator's path names; raises NotFound when there is none."""

    async def tenant_of(tenant_id: str) -> str:
        return (await tenants.get(tenant_id)).tenant_id

    return tenant_of


def threshold_routes(
    watches: BalanceWatches, prefix: str, tenant_of: Callable[..., Any]
) -> APIRouter:
    """GET, PUT …/balance/threshold."""
    router = APIRouter(prefix=prefix, tags=["tenant"])

    @router.get("/balance/threshold")
    async def get(tenant: str = Depends(tenant_of)) -> schemas.ThresholdAnswer:
        """Read below which balance a tenant is told."""
        return show_threshold(await watches.threshold(tenant))

    @router.put("/balance/threshold")
    async def put(
        wanted: schemas.WantedThreshold, tenant: str = Depends(tenant_of)
    ) -> schemas.ThresholdAnswer:
        """Say below which balance a tenant is told."""
        await watches.set_threshold(tenant, wanted.low_balance_nanos)
        return show_threshold(await watches.threshold(tenant))

    return router


def webhook_routes(
    store: Webhooks, desk: WebhookDesk, prefix: str, tenant_of: Callable[..., Any]
) -> APIRouter:
    """POST, GET …/webhooks; GET, PUT, DELETE …/webhooks/{id}; its secret."""
    router = APIRouter(prefix=prefix, tags=["webhooks"])

    @router.post("/webhooks", status_code=201)
    async def create(
        wanted: schemas.WantedWebhook, tenant: str = Depends(tenant_of)
    ) -> schemas.NewWebhookAnswer:
        """Create an endpoint; its secret is shown this once."""
        made = await create_endpoint(
            desk,
            tenant,
            wanted.wanted(),
            endpoint_id=f"whe_{uuid4().hex}",
            salt=secrets.token_bytes(SALT_BYTES),
            now=datetime.now(UTC),
        )
        return _with_secret(desk, made)

    @router.get("/webhooks")
    async def list_all(tenant: str = Depends(tenant_of)) -> Page[schemas.WebhookAnswer]:
        """List a tenant's endpoints."""
        found = await store.all_of(tenant)
        return Page(items=[show_webhook(one) for one in found], next_cursor=None)

    @router.get("/webhooks/{endpoint_id}")
    async def get(endpoint_id: str, tenant: str = Depends(tenant_of)) -> schemas.WebhookAnswer:
        """Read one endpoint."""
        return show_webhook(await store.get(tenant, endpoint_id))

    @router.put("/webhooks/{endpoint_id}")
    async def put(
        endpoint_id: str, wanted: schemas.ChangedWebhook, tenant: str = Depends(tenant_of)
    ) -> schemas.WebhookAnswer:
        """Change an endpoint."""
        changed = await change_endpoint(
            desk,
            tenant,
            endpoint_id,
            wanted.wanted(),
            enabled=wanted.enabled,
            now=datetime.now(UTC),
        )
        return show_webhook(changed)

    @router.delete("/webhooks/{endpoint_id}", status_code=204)
    async def delete(endpoint_id: str, tenant: str = Depends(tenant_of)) -> None:
        """Delete an endpoint."""
        await store.delete(tenant, endpoint_id)

    @router.post("/webhooks/{endpoint_id}/rotate")
    async def rotate(
        endpoint_id: str, wanted: schemas.WantedSecret, tenant: str = Depends(tenant_of)
    ) -> schemas.NewWebhookAnswer:
        """Replace an endpoint's secret; the old one signs beside it for a while."""
        rotated = await rotate_secret(
            desk,
            tenant,
            endpoint_id,
            salt=secrets.token_bytes(SALT_BYTES),
            old_until=wanted.old_valid_until,
            now=datetime.now(UTC),
        )
        return _with_secret(desk, rotated)

    return router


def delivery_routes(
    store: Webhooks, desk: WebhookDesk, prefix: str, tenant_of: Callable[..., Any]
) -> APIRouter:
    """POST …/ping; GET …/deliveries, newest first; POST …/deliveries/{id}/redeliver."""
    router = APIRouter(prefix=f"{prefix}/webhooks/{{endpoint_id}}", tags=["webhooks"])

    @router.post("/ping", status_code=202)
    async def send_ping(
        endpoint_id: str, tenant: str = Depends(tenant_of)
    ) -> schemas.DeliveryAnswer:
        """Send an endpoint a test event."""
        return show_delivery(await ping(desk, tenant, endpoint_id))

    @router.get("/deliveries")
    async def list_all(
        endpoint_id: str,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
        tenant: str = Depends(tenant_of),
    ) -> Page[schemas.DeliveryAnswer]:
        """List what was sent to an endpoint."""
        endpoint = await store.get(tenant, endpoint_id)
        before = decode_cursor(cursor, _AFTER_ALL)
        rows = await store.deliveries(endpoint, limit + 1, before)
        return page(rows, limit, lambda row: row.delivery_id, show_delivery)

    @router.post("/deliveries/{delivery_id}/redeliver", status_code=202)
    async def redeliver(
        endpoint_id: str, delivery_id: str, tenant: str = Depends(tenant_of)
    ) -> schemas.DeliveryAnswer:
        """Send a delivery again."""
        endpoint = await store.get(tenant, endpoint_id)
        return show_delivery(await store.deliver_again(endpoint, delivery_id))

    return router


def _with_secret(desk: WebhookDesk, endpoint: Endpoint) -> schemas.NewWebhookAnswer:
    shown = show_webhook(endpoint).model_dump()
    return schemas.NewWebhookAnswer(**shown, secret=desk.secret_of(endpoint))
