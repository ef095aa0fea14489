"""OpenTelemetry tracing with one rule: what is not sampled creates no span.

Sampling is decided once, at the edge. Everyone else looks at the traceparent
they were handed: empty or unsampled means no span at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

AttributeValue = str | bool | int | float

_TRACEPARENT_PARTS = 4
_VERSION, _TRACE_ID_HEX, _SPAN_ID_HEX = 2, 32, 16


def configure_tracing(service: str, otlp_endpoint: str | None) -> Tracer:
    """Return the service's tracer; it exports to `otlp_endpoint` (HTTP base URL).

    With None spans go nowhere. Which spans are made is the caller's decision,
    so the provider samples everything, and it is not made the global one:
    frameworks that find a global provider (FastAPI does) trace every request.
    """
    resource = Resource.create({"service.name": service, "service.namespace": "busbar"})
    provider = TracerProvider(resource=resource, sampler=ALWAYS_ON)
    if otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=f"{otlp_endpoint.rstrip('/')}/v1/traces", timeout=5)
        provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=4096, schedule_delay_millis=500)
        )
    return provider.get_tracer(service)


def flush_tracing(tracer: Tracer) -> None:
    """Export what is still queued, for at most 2 s; call it before the process ends."""
    if isinstance(tracer, SdkTracer):
        tracer.span_processor.force_flush(2000)
        tracer.span_processor.shutdown()


def parse_traceparent(header: str) -> SpanContext | None:
    """Read a W3C traceparent; None when it is missing or malformed."""
    parts = header.strip().split("-")
    if len(parts) < _TRACEPARENT_PARTS or parts[0] == "ff":
        return None
    version, trace_id, span_id, flags = parts[:_TRACEPARENT_PARTS]
    if (len(version), len(trace_id), len(span_id)) != (_VERSION, _TRACE_ID_HEX, _SPAN_ID_HEX):
        return None
    try:
        context = SpanContext(
            trace_id=int(trace_id, 16),
            span_id=int(span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(int(flags[:2], 16)),
        )
    except ValueError:
        return None
    return context if context.is_valid else None


def format_traceparent(context: SpanContext) -> str:
    """Write a span context as a W3C traceparent."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def remote_context(traceparent: str) -> Context | None:
    """The OpenTelemetry context to be a child of, or None when there is nothing sampled."""
    parent = parse_traceparent(traceparent) if traceparent else None
    if parent is None or not parent.trace_flags.sampled:
        return None
    return set_span_in_context(NonRecordingSpan(parent))


def record_span(
    tracer: Tracer,
    name: str,
    *,
    traceparent: str,
    start_unix_ns: int,
    end_unix_ns: int,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
    error: str = "",
) -> str:
    """Record a finished span under a sampled `traceparent`; return its own traceparent.

    Returns "" and records nothing when `traceparent` is not sampled.
    """
    parent = remote_context(traceparent)
    if parent is None:
        return ""
    span = tracer.start_span(
        name, context=parent, kind=kind, attributes=attributes, start_time=start_unix_ns
    )
    if error and isinstance(span, Span):
        span.set_status(trace.StatusCode.ERROR, error)
    span.end(end_time=end_unix_ns)
    return format_traceparent(span.get_span_context())
