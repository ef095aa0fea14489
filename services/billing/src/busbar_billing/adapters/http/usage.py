"""Usage by minute, hour or day: a year of it is read in milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from busbar_errors import Rejected
from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field

from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.paging import (
    PAGE_DEFAULT,
    PAGE_MAX,
    decode_cursor,
    page,
)
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.adapters.postgres.projects import Projects
from busbar_billing.adapters.postgres.rollups import After, Filters, Rollups, UsageBucket
from busbar_billing.adapters.postgres.tenants import Tenants
from busbar_billing.domain.rollups import Bucket, GroupBy, checked_window

Name = Annotated[str | None, Field(max_length=200, pattern=r"^[^\x00]*$")]
_NOT_OURS = "cursor is not one that this API gave"


class UsageBucketAnswer(BaseModel):
    """What was used in one bucket, by one group; requests that were taken back are counted in
    `voided_requests` and nowhere else. Buckets without usage are left out."""

    bucket_at: datetime
    group: str | None
    requests: int
    voided_requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    request_bytes: int
    response_bytes: int
    compute_us: int
    amount_nanos: int
    currency: str


class WantedBuckets(BaseModel):
    """Which usage, how finely. A minute's buckets cover at most a day, an hour's 31 days, a day's
    366 days."""

    bucket: Bucket = Bucket.DAY
    group_by: GroupBy = GroupBy.NOTHING
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    key_id: Name = None
    project_id: Name = None
    model: Name = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    cursor: Annotated[str | None, Field(max_length=200)] = None


class WantedTenantBuckets(WantedBuckets):
    """Whose."""

    tenant_id: Annotated[str, Field(pattern=schemas.NAME)]


def usage_routes(rollups: Rollups, tenants: Tenants, projects: Projects, keys: Keys) -> APIRouter:
    """GET /usage/buckets; to be included before /usage/{request_id}."""
    router = APIRouter(prefix="/admin/v1", tags=["ledger"])

    @router.get("/usage/buckets")
    async def buckets(
        wanted: Annotated[WantedTenantBuckets, Query()],
    ) -> schemas.Page[UsageBucketAnswer]:
        """A tenant's usage, oldest bucket first."""
        await tenants.get(wanted.tenant_id)
        if wanted.project_id:
            await projects.get(wanted.project_id, wanted.tenant_id)
        if wanted.key_id:
            await keys.get(wanted.key_id, wanted.tenant_id)
        return await buckets_page(rollups, tenants, wanted.tenant_id, wanted)

    return router


async def buckets_page(
    rollups: Rollups, tenants: Tenants, tenant_id: str, wanted: WantedBuckets
) -> schemas.Page[UsageBucketAnswer]:
    """A page of a tenant's usage; raises NotFound when there is no such tenant."""
    window = checked_window(wanted.bucket, wanted.since, wanted.until, datetime.now(UTC))
    tenant = await tenants.get(tenant_id)
    filters = Filters(wanted.key_id, wanted.project_id, wanted.model)
    after = _read_cursor(wanted.cursor)
    rows = await rollups.page(
        tenant_id, window, wanted.group_by, filters, limit=wanted.limit + 1, after=after
    )
    return page(
        rows, wanted.limit, _cursor_of, lambda row: _show(row, wanted.group_by, tenant.currency)
    )


def _cursor_of(row: UsageBucket) -> str:
    return f"{int(row.bucket_at.timestamp())}:{row.name}"


def _read_cursor(cursor: str | None) -> After | None:
    if cursor is None:
        return None
    moment, colon, name = decode_cursor(cursor, "").partition(":")
    if not colon or not moment.isdecimal() or not moment.isascii():
        raise Rejected(_NOT_OURS)
    try:
        return After(datetime.fromtimestamp(int(moment), UTC), name)
    except (OverflowError, ValueError, OSError) as error:
        raise Rejected(_NOT_OURS) from error


def _show(row: UsageBucket, group_by: GroupBy, currency: str) -> UsageBucketAnswer:
    return UsageBucketAnswer(
        bucket_at=row.bucket_at,
        group=None if group_by is GroupBy.NOTHING else row.name,
        requests=row.requests,
        voided_requests=row.voided_requests,
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        request_bytes=row.request_bytes,
        response_bytes=row.response_bytes,
        compute_us=row.compute_us,
        amount_nanos=row.amount_nanos,
        currency=currency,
    )
