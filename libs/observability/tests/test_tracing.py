"""Trace context in and out, and the rule that what is not sampled makes no span."""

from __future__ import annotations

import pytest
from busbar_observability.tracing import format_traceparent, parse_traceparent, record_span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-2] + "00"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        "00-short-b7ad6b7169203331-01",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-zzf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-",
    ],
)
def test_a_malformed_traceparent_is_none(header: str) -> None:
    assert parse_traceparent(header) is None


@pytest.mark.parametrize("header", [SAMPLED, UNSAMPLED])
def test_a_traceparent_reads_back(header: str) -> None:
    context = parse_traceparent(header)

    assert context is not None
    assert format_traceparent(context) == header


@pytest.mark.parametrize(("header", "spans"), [(SAMPLED, 1), (UNSAMPLED, 0), ("", 0)])
def test_only_a_sampled_parent_gets_a_span(header: str, spans: int) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    child = record_span(
        provider.get_tracer("test"),
        "work",
        traceparent=header,
        start_unix_ns=1_000,
        end_unix_ns=3_000,
        attributes={"busbar.node": "r1.s1.n1"},
    )

    recorded = exporter.get_finished_spans()
    assert len(recorded) == spans
    assert bool(child) == bool(spans)
    for span in recorded:
        assert span.start_time == 1_000
        assert span.end_time == 3_000
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" in SAMPLED
