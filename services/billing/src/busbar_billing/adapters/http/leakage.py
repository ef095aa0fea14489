"""Routes of leakage: what was worked and brought nothing in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from busbar_errors import Rejected
from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel

from busbar_billing.adapters.http import schemas
from busbar_billing.adapters.http.filters import TenantFilter, check_tenant
from busbar_billing.adapters.http.paging import (
    PAGE_DEFAULT,
    Cursor,
    Limit,
    decode_cursor,
    first_id_of,
    page,
)
from busbar_billing.adapters.postgres.leakage import Leak, Leakage, Place, Reason
from busbar_billing.adapters.postgres.reading import FIRST_ID
from busbar_billing.adapters.postgres.tenants import Tenants

SETTLED_AFTER = timedelta(minutes=1)
"""Requests admitted later than this may be charged yet."""


class LeakAnswer(BaseModel):
    """One attempt that brought nothing in. `energy_mj` null: its node has no counter."""

    request_id: str
    attempt: int
    reason: Reason
    tenant_id: str
    deployment: str
    node: str
    finished: bool
    input_tokens: int
    output_tokens: int
    compute_us: int
    energy_mj: int | None
    ended_at: datetime


def leakage_routes(leakage: Leakage, tenants: Tenants) -> APIRouter:
    """GET /leakage, newest first."""
    router = APIRouter(prefix="/admin/v1", tags=["ledger"])

    @router.get("/leakage")
    async def list_all(
        tenant_id: TenantFilter = None,
        since: AwareDatetime | None = None,
        until: AwareDatetime | None = None,
        limit: Limit = PAGE_DEFAULT,
        cursor: Cursor = None,
    ) -> schemas.Page[LeakAnswer]:
        """List what was worked for nothing."""
        first = FIRST_ID if since is None else first_id_of(since)
        last = first_id_of(until or datetime.now(UTC) - SETTLED_AFTER)
        before = Place(last) if cursor is None else read_place(decode_cursor(cursor, ""))
        await check_tenant(tenants, tenant_id)
        rows = await leakage.page(tenant_id, first, last, before, limit + 1)
        return page(rows, limit, lambda row: show_place(row.place), show_leak)

    return router


def show_place(place: Place) -> str:
    """What a cursor holds."""
    return f"{place.request_id}|{place.node}|{place.agent_run_id}|{place.sequence}"


def read_place(text: str) -> Place:
    """Where a page goes on; raise Rejected when that is no place."""
    try:
        request_id, node, agent_run_id, sequence = text.split("|")
        place = Place(UUID(request_id), node, agent_run_id, int(sequence))
    except ValueError as error:
        raise Rejected("cursor is not one that this API gave") from error
    if not 0 <= place.sequence < 2**63:
        raise Rejected("cursor is not one that this API gave")
    return place


def show_leak(leak: Leak) -> LeakAnswer:
    """One attempt that brought nothing in."""
    return LeakAnswer(
        request_id=f"req_{leak.place.request_id.hex}",
        attempt=leak.attempt,
        reason=leak.reason,
        tenant_id=leak.tenant_id,
        deployment=leak.deployment,
        node=leak.place.node,
        finished=leak.finished,
        input_tokens=leak.input_tokens,
        output_tokens=leak.output_tokens,
        compute_us=leak.compute_us,
        energy_mj=leak.energy_mj,
        ended_at=leak.ended_at,
    )
