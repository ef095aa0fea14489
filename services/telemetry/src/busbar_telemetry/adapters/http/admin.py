"""GET /admin/v1/...: the fleet, traces and requests for programs."""

from __future__ import annotations

from typing import Annotated, Any

from busbar_errors import NotFound
from fastapi import APIRouter, Query
from pydantic import BaseModel

from busbar_telemetry.adapters.http.errors import ErrorBody
from busbar_telemetry.domain import request_ids
from busbar_telemetry.domain.fleet_view import FleetView
from busbar_telemetry.domain.requests import RequestSummary
from busbar_telemetry.domain.traces import TraceQuery, TraceStore
from busbar_telemetry.usecases.list_requests import recent_requests, request_named
from busbar_telemetry.usecases.view_fleet import FleetViewer

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorBody, "description": "The operator token is missing or wrong"}
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorBody}}


class RequestList(BaseModel):
    """Recent traced requests, latest first."""

    items: list[RequestSummary]


def admin_routes(viewer: FleetViewer, store: TraceStore) -> APIRouter:
    """The routes of telemetry's admin API."""
    router = APIRouter(prefix="/admin/v1", responses=_REFUSALS)

    @router.get("/fleet", summary="The fleet as seen")
    async def fleet() -> FleetView:
        return viewer.view()

    @router.get(
        "/traces",
        summary="Recent traced requests, latest first",
        responses={422: {"model": ErrorBody}},
    )
    async def traces(
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        service: str = "",
        deployment: str = "",
        tenant: str = "",
        errors_only: bool = False,  # noqa: FBT001, FBT002
    ) -> RequestList:
        query = TraceQuery(limit, service, deployment, tenant, errors_only)
        return RequestList(items=recent_requests(store, query))

    @router.get("/requests/{request_id}", summary="The trace of a request", responses=_NOT_FOUND)
    async def request(request_id: str) -> RequestSummary:
        found = request_named(store, request_ids.canonical(request_id))
        if found is None:
            raise NotFound(
                f"no trace of request {request_id[:80]} is held: it was not sampled, "
                "has not arrived yet, or is too old"
            )
        return found

    return router
