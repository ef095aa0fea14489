"""Where both OTLP listeners put what they received."""

from __future__ import annotations

from busbar_errors import Rejected
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from busbar_telemetry.adapters.otlp_decoding import to_spans
from busbar_telemetry.domain.traces import TraceStore


class SpanIntake:
    """Stores the spans of a request and answers as OTLP wants it; counts for metrics."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self.accepted_count = 0
        self.refused_count = 0
        self.malformed_count = 0

    def accept(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        """Store what is valid; say in `partial_success` how much was not."""
        spans, refused = to_spans(request)
        self._store.add(spans)
        self.accepted_count += len(spans)
        self.refused_count += refused
        response = ExportTraceServiceResponse()
        if refused:
            response.partial_success.rejected_spans = refused
            response.partial_success.error_message = (
                "trace ids must be 16 bytes and span ids 8 bytes, not all zero"
            )
        return response

    def malformed(self, error: Rejected) -> str:
        """Count a request that could not be read; returns what to tell its sender."""
        self.malformed_count += 1
        return error.reason[:300]
