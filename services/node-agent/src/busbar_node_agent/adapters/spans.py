"""The spans of a sampled attempt: "work", and in it the call of Triton."""

from __future__ import annotations

from busbar_contracts.node.v1 import work_pb2
from busbar_observability.tracing import format_traceparent, remote_context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context

from busbar_node_agent.domain.usage import TokenCount
from busbar_node_agent.domain.verdicts import Failure
from busbar_node_agent.usecases.work import AttemptTrace


class AttemptSpans:
    """Two open spans; `ended` closes both."""

    def __init__(self, outer: Span, inner: Span) -> None:
        self._outer = outer
        self._inner = inner
        self.traceparent = format_traceparent(inner.get_span_context())

    def ended(self, failure: Failure | None, tokens: TokenCount) -> None:
        """See usecases.work.AttemptTrace."""
        self._outer.set_attribute("busbar.tokens.input", tokens.input_tokens)
        self._outer.set_attribute("busbar.tokens.output", tokens.output_tokens)
        if failure is not None:
            for span in (self._inner, self._outer):
                span.set_status(StatusCode.ERROR, failure.reason[:200])
            self._outer.set_attribute("busbar.failure", failure.kind.value)
        self._inner.end()
        self._outer.end()


class Spans:
    """Opens the spans of an attempt whose traceparent is sampled."""

    def __init__(self, tracer: Tracer, node: str) -> None:
        self._tracer = tracer
        self._node = node

    def open(self, work: work_pb2.InferenceWork) -> AttemptTrace | None:
        """None when the request is not sampled."""
        parent = remote_context(work.traceparent)
        if parent is None:
            return None
        attributes = {
            "busbar.tenant": work.tenant_id,
            "busbar.deployment": work.deployment,
            "busbar.node": self._node,
            "busbar.request_id": f"req_{work.request_id.hex()}",
            "busbar.attempt": work.attempt,
        }
        outer = self._tracer.start_span(
            "work", context=parent, kind=SpanKind.CONSUMER, attributes=attributes
        )
        method = "ModelStreamInfer" if work.stream else "ModelInfer"
        inner = self._tracer.start_span(
            "triton infer",
            context=set_span_in_context(outer),
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "grpc", "rpc.method": method},
        )
        return AttemptSpans(outer, inner)
