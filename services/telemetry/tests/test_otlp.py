"""OTLP over HTTP and gRPC: the real exporters, what Triton sends, and malformed input."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from busbar_observability.ops import serve_http
from busbar_telemetry.adapters import jaeger
from busbar_telemetry.adapters.otlp_decoding import read_detail
from busbar_telemetry.adapters.otlp_grpc import serve_otlp_grpc
from busbar_telemetry.adapters.otlp_http import (
    BODY_BYTES_MAX,
    ONE_EXPORT_PER_CONNECTION,
    otlp_http_application,
)
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

REQUEST_ID = "req_0197f3c2a1b27cde8f00112233445566"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def sdk_spans() -> tuple[str, Sequence[ReadableSpan]]:
    """A parent and a failed child as the SDK makes them, and their trace id."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "gateway"}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("POST /v1/embeddings") as parent:
        parent.set_attribute("busbar.request_id", REQUEST_ID)
        parent.set_attribute("busbar.deployment", "embed")
        with tracer.start_as_current_span("publish") as child:
            child.set_attribute("sizes", [1, 2, 3])
            child.add_event("queued", {"depth": 4})
            child.set_status(StatusCode.ERROR, "no answer")
    return f"{parent.get_span_context().trace_id:032x}", memory.get_finished_spans()


@pytest.fixture
async def http_url(telemetry: Any) -> AsyncIterator[str]:
    application = otlp_http_application(telemetry.intake)
    added = ONE_EXPORT_PER_CONNECTION
    async with serve_http(application, "127.0.0.1", 0, headers=added) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def grpc_address(telemetry: Any) -> AsyncIterator[str]:
    async with serve_otlp_grpc(telemetry.intake, "127.0.0.1", 0) as port:
        yield f"127.0.0.1:{port}"


async def export(exporter: SpanExporter, spans: Sequence[ReadableSpan]) -> SpanExportResult:
    result = await asyncio.to_thread(exporter.export, spans)
    await asyncio.to_thread(exporter.shutdown)
    return result


def assert_holds_sdk_trace(telemetry: Any, trace_id: str) -> None:
    trace = telemetry.store.get(trace_id)
    assert trace is telemetry.store.of_request(REQUEST_ID)
    assert trace.root.name == "POST /v1/embeddings"
    assert trace.error
    [child] = [span for span in trace.spans.values() if span.name == "publish"]
    assert child.parent_id == trace.root.span_id
    detail = read_detail(child.body)
    assert detail.status_message == "no answer"
    assert dict(detail.attributes) == {"sizes": "1, 2, 3"}
    assert detail.events[0].name == "queued"


@pytest.mark.parametrize(
    "compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate]
)
async def test_the_sdk_exports_over_http(
    telemetry: Any, http_url: str, compression: Compression
) -> None:
    trace_id, spans = sdk_spans()
    exporter = HttpExporter(endpoint=f"{http_url}/v1/traces", compression=compression)

    assert await export(exporter, spans) is SpanExportResult.SUCCESS
    assert_holds_sdk_trace(telemetry, trace_id)


async def test_no_connection_is_left_to_end_under_the_next_export(http_url: str) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        answer = await client.post(
            f"{http_url}/v1/traces",
            content=ExportTraceServiceRequest().SerializeToString(),
            headers={"content-type": "application/x-protobuf"},
        )

    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_the_sdk_exports_over_grpc(
    telemetry: Any, grpc_address: str, compression: grpc.Compression | None
) -> None:
    trace_id, spans = sdk_spans()
    exporter = GrpcExporter(endpoint=grpc_address, insecure=True, compression=compression)

    assert await export(exporter, spans) is SpanExportResult.SUCCESS
    assert_holds_sdk_trace(telemetry, trace_id)


TRITON = {
    "resourceSpans": [
        {
            "resource": {
                "attributes": [
                    {"key": "service.name", "value": {"stringValue": "triton-inference-server"}}
                ]
            },
            "scopeSpans": [
                {
                    "scope": {"name": "triton-server"},
                    "spans": [
                        {
                            "attributes": [
                                {"key": "triton.model_version", "value": {"intValue": "1"}},
                                {"key": "triton.model_name", "value": {"stringValue": "simple"}},
                            ],
                            "endTimeUnixNano": "1763600000002000000",
                            "events": [
                                {
                                    "name": "REQUEST_START",
                                    "timeUnixNano": "1763600000001000000",
                                    "droppedAttributesCount": 0,
                                }
                            ],
                            "flags": 257,
                            "kind": 1,
                            "name": "InferRequest",
                            "parentSpanId": "00f067aa0ba902b7",
                            "spanId": "b7ad6b7169203331",
                            "startTimeUnixNano": "1763600000001000000",
                            "status": {"code": 0},
                            "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
                            "someNewField": {"later": True},
                        }
                    ],
                }
            ],
        }
    ]
}


@pytest.mark.parametrize("packed", [False, True])
async def test_json_with_hex_ids_as_triton_sends_it(
    telemetry: Any, http_url: str, *, packed: bool
) -> None:
    body = json.dumps(TRITON).encode()
    headers = {"content-type": "application/json"} | (
        {"content-encoding": "gzip"} if packed else {}
    )
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        answer = await client.post(
            f"{http_url}/v1/traces",
            content=gzip.compress(body) if packed else body,
            headers=headers,
        )

    assert (answer.status_code, answer.json()) == (200, {})
    trace = telemetry.store.get("4bf92f3577b34da6a3ce929d0e0e4736")
    [span] = trace.spans.values()
    assert (span.service, span.name) == ("triton-inference-server", "InferRequest")
    assert (span.parent_id, span.end_ns - span.start_ns) == ("00f067aa0ba902b7", 1_000_000)
    assert dict(read_detail(span.body).attributes) == {
        "triton.model_version": 1,
        "triton.model_name": "simple",
    }


def one_span(**fields: Any) -> bytes:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, "op"
    for name, value in fields.items():
        setattr(span, name, value)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("content_type", "encoding", "body", "status"),
    [
        ("application/x-protobuf", "", b"\xff\xff\xff", 400),
        ("application/json", "", b"{", 400),
        ("application/json", "", b"[]", 400),
        ("application/json", "", b'{"resourceSpans": 5}', 400),
        ("application/json", "", b"[" * 100_000, 400),
        ("application/json", "", b"\xff\xfe", 400),
        ("application/json", "", json.dumps(TRITON).replace("4bf9", "zzzz").encode(), 400),
        ("application/x-protobuf", "gzip", b"not gzip", 400),
        ("application/x-protobuf", "gzip", gzip.compress(one_span(), mtime=0)[:-12], 400),
        ("application/x-protobuf", "br", b"x", 415),
        ("text/plain", "", b"hello", 415),
        ("", "", b"hello", 415),
        ("application/x-protobuf", "", b"\0" * (BODY_BYTES_MAX + 1), 413),
        ("application/x-protobuf", "gzip", gzip.compress(b"\0" * 50_000_000, mtime=0), 413),
    ],
)
async def test_malformed_http_requests_are_refused_in_their_own_encoding(
    telemetry: Any, http_url: str, *, content_type: str, encoding: str, body: bytes, status: int
) -> None:
    headers = {"content-type": content_type} | ({"content-encoding": encoding} if encoding else {})
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        answer = await client.post(f"{http_url}/v1/traces", content=body, headers=headers)

    assert answer.status_code == status
    if content_type == "application/x-protobuf":
        assert Status.FromString(answer.content).message
    else:
        assert answer.json()["message"]
    assert len(telemetry.store) == 0


async def test_other_methods_and_signals_are_refused(http_url: str) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        assert (await client.get(f"{http_url}/v1/traces")).status_code == 405
        assert (await client.post(f"{http_url}/v1/metrics")).status_code == 404


async def test_malformed_grpc_requests_are_invalid_arguments(
    telemetry: Any, grpc_address: str
) -> None:
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        call = channel.unary_unary(EXPORT)
        with pytest.raises(grpc.aio.AioRpcError) as malformed:
            await call(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as too_large:
            await call(b"\0" * (BODY_BYTES_MAX + 1))

    assert malformed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert too_large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert telemetry.intake.malformed_count == 1


@pytest.mark.parametrize(
    "bad",
    [{"trace_id": b"\0" * 16}, {"trace_id": b"x"}, {"span_id": b""}, {"parent_span_id": b"abc"}],
)
async def test_spans_with_ids_that_are_none_are_counted_as_rejected(
    telemetry: Any, grpc_address: str, bad: dict[str, bytes]
) -> None:
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        good, refused = [
            ExportTraceServiceResponse.FromString(await channel.unary_unary(EXPORT)(body))
            for body in (one_span(), one_span(**bad))
        ]

    assert good.partial_success.rejected_spans == 0
    assert refused.partial_success.rejected_spans == 1
    assert refused.partial_success.error_message
    assert len(telemetry.store) == 1


def test_a_huge_span_is_cut_down(telemetry: Any) -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = b"t" * 16, b"s" * 8, "n" * 100_000
    span.status.message = "m" * 100_000
    for number in range(1_000):
        attribute = span.attributes.add(key=f"key{number}")
        attribute.value.string_value = "v" * 10_000
        event = span.events.add(name="e" * 10_000)
        event.attributes.add(key="k").value.string_value = "v" * 10_000
        span.links.add(trace_id=b"l" * 16, span_id=b"k" * 8, trace_state="s" * 1_000)
    telemetry.intake.accept(request)

    trace = telemetry.store.get((b"t" * 16).hex())
    assert trace.size_bytes < 8_000
    assert jaeger.trace_document(trace)["spans"][0]["operationName"] == "n" * 200


def test_jaegers_json(telemetry: Any) -> None:
    trace_id, spans = sdk_spans()
    telemetry.intake.accept(
        ExportTraceServiceRequest.FromString(encode_spans(spans).SerializeToString())
    )
    document = jaeger.trace_document(telemetry.store.get(trace_id))

    assert document["traceID"] == trace_id
    assert document["processes"] == {"p1": {"serviceName": "gateway", "tags": []}}
    root, child = document["spans"]
    assert root["references"] == []
    assert child["references"] == [
        {"refType": "CHILD_OF", "traceID": trace_id, "spanID": root["spanID"]}
    ]
    assert set(root) == {
        "traceID", "spanID", "operationName", "references", "startTime", "duration", "tags",
        "logs", "processID", "warnings",
    }  # fmt: skip
    assert root["startTime"] == (spans[1].start_time or 0) // 1000
    tags = {tag["key"]: (tag["type"], tag["value"]) for tag in child["tags"]}
    assert tags["error"] == ("bool", True)
    assert tags["otel.status_description"] == ("string", "no answer")
    assert child["logs"][0]["fields"] == [
        {"key": "event", "type": "string", "value": "queued"},
        {"key": "depth", "type": "int64", "value": 4},
    ]
