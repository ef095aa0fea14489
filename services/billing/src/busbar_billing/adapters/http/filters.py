"""What operators' lists can be narrowed to."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.postgres.tenants import Tenants

TenantFilter = Annotated[str | None, Query(pattern=schemas.NAME)]


async def check_tenant(tenants: Tenants, tenant_id: str | None) -> None:
    """Raise NotFound for a tenant that is none: an empty list would say that it did nothing."""
    if tenant_id is not None:
        await tenants.get(tenant_id)
