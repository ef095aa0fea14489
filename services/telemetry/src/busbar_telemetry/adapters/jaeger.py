"""Traces in the JSON of Jaeger's query API, which its UI, Grafana and jq scripts read."""

from __future__ import annotations

from typing import Any

from busbar_telemetry.adapters.otlp_decoding import read_detail
from busbar_telemetry.domain.span_detail import Attributes, AttributeValue, SpanEvent
from busbar_telemetry.domain.traces import Span, Trace


def envelope(data: Any, total: int = 0) -> dict[str, Any]:
    """The frame around every answer of Jaeger's API."""
    return {"data": data, "total": total, "limit": 0, "offset": 0, "errors": None}


def failure(status: int, reason: str) -> dict[str, Any]:
    """An error, as Jaeger's API says it."""
    return envelope(None) | {"errors": [{"code": status, "msg": reason}]}


def trace_document(trace: Trace) -> dict[str, Any]:
    """One trace; times in microseconds as Jaeger has them."""
    processes = {service: f"p{n}" for n, service in enumerate(sorted(trace.services), start=1)}
    spans = sorted(trace.spans.values(), key=lambda span: span.start_ns)
    warnings = [f"{trace.dropped_spans} more spans were not kept"] if trace.dropped_spans else None
    return {
        "traceID": trace.trace_id,
        "spans": [_span(span, processes[span.service]) for span in spans],
        "processes": {
            process: {"serviceName": service, "tags": []} for service, process in processes.items()
        },
        "warnings": warnings,
    }


def _span(span: Span, process: str) -> dict[str, Any]:
    detail = read_detail(span.body)
    tags = _tags(detail.attributes)
    tags.append(_tag("span.kind", detail.kind))
    if span.error:
        tags += [_tag("error", value=True), _tag("otel.status_code", "ERROR")]
        if detail.status_message:
            tags.append(_tag("otel.status_description", detail.status_message))
    parents = [(span.trace_id, span.parent_id)] if span.parent_id else []
    references = [_reference("CHILD_OF", *parent) for parent in parents]
    references += [_reference("FOLLOWS_FROM", *link) for link in detail.links]
    return {
        "traceID": span.trace_id,
        "spanID": span.span_id,
        "operationName": span.name,
        "references": references,
        "startTime": span.start_ns // 1000,
        "duration": (span.end_ns - span.start_ns) // 1000,
        "tags": tags,
        "logs": [_log(event) for event in detail.events],
        "processID": process,
        "warnings": None,
    }


def _reference(kind: str, trace_id: str, span_id: str) -> dict[str, str]:
    return {"refType": kind, "traceID": trace_id, "spanID": span_id}


def _log(event: SpanEvent) -> dict[str, Any]:
    return {
        "timestamp": event.at_ns // 1000,
        "fields": [_tag("event", event.name), *_tags(event.attributes)],
    }


def _tags(attributes: Attributes) -> list[dict[str, Any]]:
    return [_tag(key, value) for key, value in attributes]


def _tag(key: str, value: AttributeValue) -> dict[str, Any]:
    kinds: dict[type[AttributeValue], str] = {bool: "bool", int: "int64", float: "float64"}
    return {"key": key, "type": kinds.get(type(value), "string"), "value": value}
