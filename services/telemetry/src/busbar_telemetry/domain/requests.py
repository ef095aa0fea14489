"""A request in one line, from its trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from busbar_telemetry.domain import traces
from busbar_telemetry.domain.traces import Span, Trace


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """One traced request. Counts and cost are None while no span has told them."""

    trace_id: str
    request_id: str
    start_unix_ns: int
    duration_ns: int
    operation: str
    tenant: str
    deployment: str
    node: str
    status: str
    error: bool
    input_tokens: int | None
    output_tokens: int | None
    cost_nanos: int | None
    services: list[str]
    span_count: int


def requests_of(trace: Trace) -> list[RequestSummary]:
    """The requests in a trace, earliest first; a trace that names none counts as one.

    A customer who sends the same traceparent with several requests gets one trace of them all.
    """
    groups: dict[str, list[Span]] = {}
    for span in trace.spans.values():
        groups.setdefault(_request_id(span, trace), []).append(span)
    if len(groups.keys() - {""}) <= 1:
        request_id = max(groups, default="")
        return [_summarise(trace, request_id, list(trace.spans.values()))]
    found = [_summarise(trace, name, spans) for name, spans in groups.items() if name]
    return sorted(found, key=lambda summary: summary.start_unix_ns)


def _request_id(span: Span, trace: Trace) -> str:
    """The id that the span or the nearest span above it names; "" when none does."""
    above: Span | None = span
    for _ in range(len(trace.spans)):  # parents may form a circle
        if above is None:
            break
        if request_id := _text(above.facts.get(traces.REQUEST_ID)):
            return request_id
        above = trace.spans.get(above.parent_id)
    return ""


def _summarise(trace: Trace, request_id: str, spans: list[Span]) -> RequestSummary:
    facts = {key: value for span in spans for key, value in span.facts.items()}
    entry = _entry(spans)
    error = any(span.error for span in spans)
    return RequestSummary(
        trace_id=trace.trace_id,
        request_id=request_id,
        start_unix_ns=entry.start_ns,
        duration_ns=max(0, entry.end_ns - entry.start_ns),
        operation=entry.name,
        tenant=_text(facts.get(traces.TENANT)),
        deployment=_text(facts.get(traces.DEPLOYMENT)),
        node=_text(facts.get(traces.NODE)),
        status=_status(facts, error=error),
        error=error,
        input_tokens=_count(facts.get(traces.INPUT_TOKENS)),
        output_tokens=_count(facts.get(traces.OUTPUT_TOKENS)),
        cost_nanos=_count(facts.get(traces.COST_NANOS)),
        services=sorted({span.service for span in spans}),
        span_count=len(spans),
    )


def _entry(spans: list[Span]) -> Span:
    """Where the request came in: the earliest span that none of `spans` is above."""
    own = {span.span_id for span in spans}
    tops = [span for span in spans if span.parent_id not in own]
    return min(tops or spans, key=lambda span: (span.start_ns, span.span_id))


def _status(facts: Mapping[str, traces.FactValue], *, error: bool) -> str:
    told = facts.get(traces.HTTP_STATUS, facts.get(traces.GRPC_STATUS))
    if told is not None:
        return str(told)
    return "error" if error else "ok"


def _text(value: traces.FactValue | None) -> str:
    return "" if value is None else str(value)


def _count(value: traces.FactValue | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
