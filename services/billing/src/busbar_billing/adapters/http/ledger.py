"""Routes of usage and of the journal behind it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.filters import TenantFilter, check_tenant
from busbar_billing.adapters.http.paging import (
    PAGE_DEFAULT,
    Cursor,
    Limit,
    decode_id_cursor,
    first_id_of,
    page,
    read_request_id,
)
from busbar_billing.adapters.http.showing import show_line, show_transfer, show_usage
from busbar_billing.adapters.postgres.prices import Prices
from busbar_billing.adapters.postgres.reading import FIRST_ID, LAST_ID, PostedUsage, Reader
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.prices import PriceBooks
from busbar_billing.domain.rating import explain

RequestFilter = Annotated[str | None, Query(max_length=80)]


def ledger_routes(reader: Reader, prices: Prices, tenants: Tenants) -> APIRouter:
    """GET /usage, /usage/{request_id} and /ledger, newest first."""
    router = APIRouter(prefix="/admin/v1", tags=["ledger"])

    @router.get("/usage")
    async def usage(
        tenant_id: TenantFilter = None,
        since: AwareDatetime | None = None,
        until: AwareDatetime | None = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[schemas.UsageAnswer]:
        """List billed requests, newest first."""
        first = FIRST_ID if since is None else first_id_of(since)
        last = LAST_ID if until is None else first_id_of(until)
        before = min(last, decode_id_cursor(cursor, last))
        await check_tenant(tenants, tenant_id)
        rows = await reader.usage(tenant_id, first, before, limit + 1)
        return page(rows, limit, lambda row: str(row.record.request_id), show_usage)

    @router.get("/usage/{request_id}")
    async def usage_of(request_id: str) -> schemas.ExplainedUsageAnswer:
        """Explain one charge line by line."""
        posted = await reader.usage_of(read_request_id(request_id))
        lines = rating_lines(posted, await prices.all())
        return schemas.ExplainedUsageAnswer(**show_usage(posted).model_dump(), lines=lines)

    @router.get("/ledger")
    async def ledger(
        tenant_id: TenantFilter = None,
        request_id: RequestFilter = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[schemas.TransferAnswer]:
        """List ledger transfers, newest first."""
        request = None if request_id is None else read_request_id(request_id)
        before = decode_id_cursor(cursor, LAST_ID)
        await check_tenant(tenants, tenant_id)
        rows = await reader.transfers(tenant_id, request, before, limit + 1)
        return page(rows, limit, lambda row: str(row.transfer.transfer_id), show_transfer)

    return router


def rating_lines(posted: PostedUsage, books: PriceBooks) -> list[schemas.RatingLine]:
    """Why a request cost what it cost."""
    listed = books.version(posted.price_version).classes[posted.rated_class]
    return [
        show_line(line, listed[line.component])
        for line in explain(posted.record, listed, posted.before)
    ]
