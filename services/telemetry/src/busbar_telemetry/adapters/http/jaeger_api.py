"""The part of Jaeger's query API that reads traces, so that its UI and Grafana can."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response

from busbar_telemetry.adapters import jaeger
from busbar_telemetry.adapters.http.errors import ErrorBody
from busbar_telemetry.domain.traces import TraceQuery, TraceStore

_TRACE_ID_DIGITS = 32
_TRACE_ID = re.compile(r"[0-9a-fA-F]{1,32}")
_REFUSALS: dict[int | str, dict[str, Any]] = {401: {"model": ErrorBody}}


def jaeger_routes(store: TraceStore) -> APIRouter:
    """The routes under /api."""
    router = APIRouter(prefix="/api", responses=_REFUSALS)

    @router.get("/services", summary="Services of which spans are held (Jaeger's shape)")
    async def services() -> dict[str, Any]:
        found = store.services()
        return jaeger.envelope(found, len(found))

    @router.get(
        "/services/{service}/operations", summary="Span names of a service (Jaeger's shape)"
    )
    async def operations(service: str) -> dict[str, Any]:
        found = sorted(
            {
                span.name
                for trace in store.find(TraceQuery(limit=1000, service=service))
                for span in trace.spans.values()
                if span.service == service
            }
        )
        return jaeger.envelope(found, len(found))

    @router.get("/traces", summary="Recent traces of a service (Jaeger's shape)")
    async def traces(
        service: str = "", limit: Annotated[int, Query(ge=1, le=200)] = 20
    ) -> Response:
        found = store.find(TraceQuery(limit=limit, service=service))
        return JSONResponse(jaeger.envelope([jaeger.trace_document(trace) for trace in found]))

    @router.get(
        "/traces/{trace_id}",
        summary="One trace (Jaeger's shape)",
        responses={400: {"description": "Not a trace id"}, 404: {"description": "Not held"}},
    )
    async def trace(trace_id: str) -> Response:
        if not _TRACE_ID.fullmatch(trace_id):
            return JSONResponse(jaeger.failure(400, "a trace id is up to 32 hex digits"), 400)
        found = store.get(trace_id.lower().rjust(_TRACE_ID_DIGITS, "0"))
        if found is None:
            return JSONResponse(jaeger.failure(404, "trace not found"), 404)
        return JSONResponse(jaeger.envelope([jaeger.trace_document(found)]))

    return router
