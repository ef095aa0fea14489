"""List recent traced requests."""

from __future__ import annotations

from busbar_telemetry.domain.requests import RequestSummary, requests_of
from busbar_telemetry.domain.traces import TraceQuery, TraceStore


def recent_requests(store: TraceStore, query: TraceQuery) -> list[RequestSummary]:
    """What `query` asks for, latest first; at most `query.limit` requests."""
    found = [request for trace in store.find(query) for request in requests_of(trace)]
    matching = [
        request
        for request in found
        if query.deployment in {"", request.deployment}
        and query.tenant in {"", request.tenant}
        and (request.error or not query.errors_only)
    ]
    matching.sort(key=lambda request: request.start_unix_ns, reverse=True)
    return matching[: query.limit]


def request_named(store: TraceStore, request_id: str) -> RequestSummary | None:
    """The request of that public id, if its trace is held."""
    trace = store.of_request(request_id)
    if trace is None:
        return None
    requests = requests_of(trace)
    return next((found for found in requests if found.request_id == request_id), requests[0])
