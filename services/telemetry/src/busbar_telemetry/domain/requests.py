"""A request in one line, from its trace."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_telemetry.domain import traces
from busbar_telemetry.domain.traces import Trace


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


def summarise(trace: Trace) -> RequestSummary:
    """What lists show of a trace."""
    root, facts = trace.root, trace.facts
    return RequestSummary(
        trace_id=trace.trace_id,
        request_id=_text(facts.get(traces.REQUEST_ID)),
        start_unix_ns=trace.start_ns,
        duration_ns=trace.duration_ns,
        operation=root.name,
        tenant=_text(facts.get(traces.TENANT)),
        deployment=_text(facts.get(traces.DEPLOYMENT)),
        node=_text(facts.get(traces.NODE)),
        status=_status(trace),
        error=trace.error,
        input_tokens=_count(facts.get(traces.INPUT_TOKENS)),
        output_tokens=_count(facts.get(traces.OUTPUT_TOKENS)),
        cost_nanos=_count(facts.get(traces.COST_NANOS)),
        services=sorted(trace.services),
        span_count=len(trace.spans),
    )


def _status(trace: Trace) -> str:
    told = trace.facts.get(traces.HTTP_STATUS, trace.facts.get(traces.GRPC_STATUS))
    if told is not None:
        return str(told)
    return "error" if trace.error else "ok"


def _text(value: traces.FactValue | None) -> str:
    return "" if value is None else str(value)


def _count(value: traces.FactValue | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
