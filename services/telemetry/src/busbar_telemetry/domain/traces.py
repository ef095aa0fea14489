"""Recent traces in bounded space: the oldest go first, failed and slow ones later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

FactValue = str | int | float | bool

TENANT = "busbar.tenant"
DEPLOYMENT = "busbar.deployment"
NODE = "busbar.node"
REQUEST_ID = "busbar.request_id"
INPUT_TOKENS = "busbar.tokens.input"
OUTPUT_TOKENS = "busbar.tokens.output"
COST_NANOS = "busbar.cost_nanos"
HTTP_STATUS = "http.response.status_code"
GRPC_STATUS = "rpc.grpc.status_code"

FACT_KEYS = frozenset(
    {
        TENANT,
        DEPLOYMENT,
        NODE,
        REQUEST_ID,
        INPUT_TOKENS,
        OUTPUT_TOKENS,
        COST_NANOS,
        HTTP_STATUS,
        GRPC_STATUS,
    }
)
"""Span attributes that describe the whole request and are kept beside the trace."""

SPAN_OVERHEAD_BYTES = 520
"""What a stored span costs beside its body: objects, index entries; measured."""
TRACE_OVERHEAD_BYTES = 800
"""What a trace costs beside its spans; measured."""


@dataclass(frozen=True, slots=True)
class Span:
    """One span: what lists and searches need, and everything else encoded in `body`."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    start_ns: int
    end_ns: int
    error: bool
    facts: Mapping[str, FactValue]
    body: bytes

    @property
    def size_bytes(self) -> int:
        """What keeping it costs."""
        return len(self.body) + len(self.name) + SPAN_OVERHEAD_BYTES


@dataclass(slots=True)
class Trace:
    """The spans of one trace that have arrived so far."""

    trace_id: str
    spans: dict[str, Span] = field(default_factory=dict[str, Span])
    start_ns: int = 0
    size_bytes: int = TRACE_OVERHEAD_BYTES
    error: bool = False
    dropped_spans: int = 0

    def add(self, span: Span) -> None:
        """Take a span that is not here yet."""
        self.start_ns = min(self.start_ns, span.start_ns) if self.spans else span.start_ns
        self.size_bytes += span.size_bytes
        self.spans[span.span_id] = span
        self.error = self.error or span.error

    @property
    def root(self) -> Span:
        """The span that nothing here is above; the earliest when there are several."""
        tops = [span for span in self.spans.values() if span.parent_id not in self.spans]
        return min(tops or self.spans.values(), key=lambda span: (span.start_ns, span.span_id))

    @property
    def duration_ns(self) -> int:
        """From the root's start to the root's end: what the customer waited."""
        root = self.root
        return max(0, root.end_ns - root.start_ns)

    def tells(self, key: str, value: FactValue) -> bool:
        """Whether any span has that fact."""
        return any(span.facts.get(key) == value for span in self.spans.values())

    @property
    def services(self) -> set[str]:
        """Services that took part."""
        return {span.service for span in self.spans.values()}


@dataclass(frozen=True, slots=True)
class TraceLimits:
    """How much is kept. Failed and slow traces may fill up to `kept_share` of it."""

    traces: int = 2_000
    bytes: int = 6 * 1024 * 1024
    spans_per_trace: int = 500
    slow_ns: int = 5_000_000_000
    kept_share: float = 0.5

    @property
    def bytes_per_trace(self) -> int:
        """One trace never takes more than this."""
        return self.bytes // 8


@dataclass(frozen=True, slots=True)
class TraceQuery:
    """Which traces to list; empty fields match everything."""

    limit: int = 50
    service: str = ""
    deployment: str = ""
    tenant: str = ""
    errors_only: bool = False

    def matches(self, trace: Trace) -> bool:
        """Whether `trace` is asked for."""
        if self.errors_only and not trace.error:
            return False
        if self.deployment and not trace.tells(DEPLOYMENT, self.deployment):
            return False
        if self.tenant and not trace.tells(TENANT, self.tenant):
            return False
        return not self.service or self.service in trace.services


class TraceStore:
    """Traces by id and by request id, oldest first out, within `limits`."""

    def __init__(self, limits: TraceLimits) -> None:
        self._limits = limits
        self._ordinary: dict[str, Trace] = {}
        self._kept: dict[str, Trace] = {}
        self._by_request: dict[str, str] = {}
        self._kept_bytes = 0
        self.size_bytes = 0
        self.evicted_count = 0
        self.dropped_span_count = 0

    def __len__(self) -> int:
        return len(self._ordinary) + len(self._kept)

    @property
    def span_count(self) -> int:
        """Spans held now."""
        return sum(len(trace.spans) for trace in self._all())

    @property
    def request_count(self) -> int:
        """Request ids that lead to a trace."""
        return len(self._by_request)

    def add(self, spans: Iterable[Span]) -> None:
        """Take spans in any order, each into its trace, then evict what is too much."""
        for span in spans:
            self._add(span)
        self._evict()

    def get(self, trace_id: str) -> Trace | None:
        """The trace of that id (32 hex digits), if it is still held."""
        return self._ordinary.get(trace_id) or self._kept.get(trace_id)

    def of_request(self, request_id: str) -> Trace | None:
        """The trace of a request, by its public id."""
        trace_id = self._by_request.get(request_id)
        return self.get(trace_id) if trace_id else None

    def find(self, query: TraceQuery) -> list[Trace]:
        """Matching traces, latest start first."""
        matching = [trace for trace in self._all() if query.matches(trace)]
        matching.sort(key=lambda trace: trace.start_ns, reverse=True)
        return matching[: query.limit]

    def services(self) -> list[str]:
        """Services of which spans are held, in order."""
        return sorted(set[str]().union(*(trace.services for trace in self._all())))

    def _all(self) -> Iterator[Trace]:
        return chain(self._ordinary.values(), self._kept.values())

    def _add(self, span: Span) -> None:
        trace = self.get(span.trace_id)
        if trace is None:
            trace = self._ordinary[span.trace_id] = Trace(span.trace_id)
            self.size_bytes += trace.size_bytes
        if span.span_id in trace.spans:
            return  # an exporter that got no answer sends again
        if self._is_full(trace, span):
            trace.dropped_spans += 1
            self.dropped_span_count += 1
            return
        trace.add(span)
        self.size_bytes += span.size_bytes
        self._index(span)
        if span.trace_id in self._kept:
            self._kept_bytes += span.size_bytes
        elif span.error or span.end_ns - span.start_ns >= self._limits.slow_ns:
            self._kept[span.trace_id] = self._ordinary.pop(span.trace_id)
            self._kept_bytes += trace.size_bytes

    def _index(self, span: Span) -> None:
        request_id = span.facts.get(REQUEST_ID)
        if isinstance(request_id, str) and request_id:
            self._by_request.setdefault(request_id, span.trace_id)

    def _is_full(self, trace: Trace, span: Span) -> bool:
        if not trace.spans:
            return (
                False  # no trace is empty; what one span may weigh is bounded where it is decoded
            )
        too_many = len(trace.spans) >= self._limits.spans_per_trace
        return too_many or trace.size_bytes + span.size_bytes > self._limits.bytes_per_trace

    def _evict(self) -> None:
        limits = self._limits
        while len(self) > limits.traces or self.size_bytes > limits.bytes:
            kept_has_its_share = (
                len(self._kept) > limits.traces * limits.kept_share
                or self._kept_bytes > limits.bytes * limits.kept_share
            )
            pool = self._kept if kept_has_its_share or not self._ordinary else self._ordinary
            self._drop_oldest(pool)

    def _drop_oldest(self, pool: dict[str, Trace]) -> None:
        trace = pool.pop(next(iter(pool)))
        self.size_bytes -= trace.size_bytes
        if pool is self._kept:
            self._kept_bytes -= trace.size_bytes
        self.evicted_count += 1
        for span in trace.spans.values():
            request_id = span.facts.get(REQUEST_ID)
            if isinstance(request_id, str) and self._by_request.get(request_id) == trace.trace_id:
                del self._by_request[request_id]
