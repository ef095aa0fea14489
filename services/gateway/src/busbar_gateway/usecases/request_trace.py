"""The spans of one request at the gateway: made while serving only when it is sampled."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

from busbar_observability.tracing import AttributeValue, format_traceparent, parse_traceparent
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    set_span_in_context,
)

from busbar_gateway.domain.failures import answer_for, reason_for
from busbar_gateway.domain.sampling import Verdict, decide, worth_keeping
from busbar_gateway.usecases.calls import InferenceCall, RefusedCall

_SERVER_ERROR = 500
_NS_PER_S = 1_000_000_000


class RequestTrace:
    """One sampled request's root span and its children."""

    def __init__(self, root: Span, tracer: Tracer) -> None:
        self.root = root
        self._tracer = tracer

    def child(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """Start a child of the root; the caller ends it."""
        return self._tracer.start_span(name, context=set_span_in_context(self.root), kind=kind)


def traceparent_of(span: Span) -> str:
    """What to hand on so that others become children of `span`."""
    return format_traceparent(span.get_span_context())


class RequestTracing:
    """Decides once for each request whether it is traced."""

    def __init__(self, tracer: Tracer, *, ratio: float, slow_after_s: float) -> None:
        self._tracer = tracer
        self._ratio = ratio
        self._slow_after_s = slow_after_s

    def begin(self, call: InferenceCall) -> RequestTrace | None:
        """Start the root span if the request is sampled; None if it is not."""
        parent = parse_traceparent(call.traceparent) if call.traceparent else None
        if not self._chooses(parent):
            return None
        return RequestTrace(self._root(call, parent), self._tracer)

    def refused(self, call: RefusedCall, error: Exception) -> None:
        """Make the only span of a request that was refused before it was served."""
        parent = parse_traceparent(call.traceparent) if call.traceparent else None
        ours_failed = call.http_status >= _SERVER_ERROR
        if not (self._chooses(parent) or ours_failed):
            return
        root = self._root(call, parent)
        root.set_attributes({**call.attributes, "error.type": type(error).__name__})
        if ours_failed:
            root.set_status(StatusCode.ERROR, reason_for(error))
        root.end()

    def _chooses(self, parent: SpanContext | None) -> bool:
        sampled = parent is not None and parent.trace_flags.sampled
        verdict = decide(self._ratio, random.random(), parent_sampled=sampled)  # noqa: S311
        return verdict is not Verdict.UNTRACED

    def end(
        self,
        trace: RequestTrace | None,
        call: InferenceCall,
        *,
        error: BaseException | None,
        first_byte_unix_ns: int | None,
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        """End the root span; keep a root span of an unsampled request that went badly."""
        ours_failed = error is not None and _ours(error)
        if trace is not None:
            root = trace.root
        else:
            now = time.time_ns()
            keep = worth_keeping(
                ours_failed=ours_failed,
                first_byte_s=None
                if first_byte_unix_ns is None
                else (first_byte_unix_ns - call.received_unix_ns) / _NS_PER_S,
                slow_after_s=self._slow_after_s,
                total_s=(now - call.received_unix_ns) / _NS_PER_S,
            )
            if not keep:
                return
            root = self._root(call, None)
        root.set_attributes(attributes)
        if first_byte_unix_ns is not None:
            root.set_attribute(
                "busbar.first_byte_ms", (first_byte_unix_ns - call.received_unix_ns) / 1_000_000
            )
        if error is not None:
            root.set_attribute("error.type", type(error).__name__)
            if ours_failed:
                root.set_status(StatusCode.ERROR, reason_for(error))
        root.end()

    def _root(self, call: InferenceCall | RefusedCall, parent: SpanContext | None) -> Span:
        context = set_span_in_context(NonRecordingSpan(parent)) if parent is not None else None
        deployment = call.route.deployment if isinstance(call, InferenceCall) else ""
        return self._tracer.start_span(
            f"gateway {call.api}",
            context=context,
            kind=SpanKind.SERVER,
            start_time=call.received_unix_ns,
            attributes={
                "busbar.request_id": f"req_{call.request_id.hex()}",
                "busbar.tenant": call.caller.tenant_id,
                "busbar.key_id": call.caller.key_id,
                "busbar.deployment": deployment,
                "busbar.api": call.api,
            },
        )


def _ours(error: BaseException) -> bool:
    return isinstance(error, Exception) and answer_for(error).http_status >= _SERVER_ERROR
