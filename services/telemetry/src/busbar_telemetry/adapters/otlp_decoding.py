"""OTLP trace messages, protobuf or JSON, into spans; and a span's body back into detail.

https://opentelemetry.io/docs/specs/otlp/ . OTLP/JSON is the JSON mapping of the
protobuf messages except that ids are hex, not base64.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Iterable
from typing import Any, cast

from busbar_errors import Rejected
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from busbar_telemetry.domain import request_ids
from busbar_telemetry.domain.span_detail import Attributes, AttributeValue, SpanDetail, SpanEvent
from busbar_telemetry.domain.traces import FACT_KEYS, REQUEST_ID, FactValue, Span

_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8
_BODY_BYTES_MAX = 4096
_ATTRIBUTES_MAX = 48
_EVENTS_MAX = 12
_LINKS_MAX = 8
_TEXT_CHARS_MAX = 512
_NAME_CHARS_MAX = 200
_ID_FIELDS = ("traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id")


def parse_protobuf(body: bytes) -> ExportTraceServiceRequest:
    """Parse an OTLP/protobuf body; raise Rejected when it is none."""
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise Rejected(f"not an ExportTraceServiceRequest: {error}") from error


def parse_json(body: bytes) -> ExportTraceServiceRequest:
    """Parse an OTLP/JSON body; raise Rejected when it is none."""
    try:
        document: Any = json.loads(body)
        if not isinstance(document, dict):
            raise Rejected("an OTLP/JSON request is an object")
        _ids_to_base64(document)
        request = ExportTraceServiceRequest()
        return json_format.ParseDict(document, request, ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.Error) as error:
        raise Rejected(f"not an OTLP/JSON trace request: {error}") from error


def _ids_to_base64(document: Any) -> None:
    for resource_spans in _members(document, "resourceSpans", "resource_spans"):
        for scope_spans in _members(resource_spans, "scopeSpans", "scope_spans"):
            for span in _members(scope_spans, "spans"):
                _hex_fields_to_base64(span)
                for link in _members(span, "links"):
                    _hex_fields_to_base64(link)


def _members(parent: Any, *names: str) -> Iterable[dict[str, Any]]:
    """The objects in a list member, whichever way its name is spelled."""
    if not isinstance(parent, dict):
        return []
    fields = cast("dict[str, Any]", parent)
    found = next((fields[name] for name in names if name in fields), None)
    return (
        [item for item in cast("list[Any]", found) if isinstance(item, dict)]
        if isinstance(found, list)
        else []
    )


def _hex_fields_to_base64(holder: dict[str, Any]) -> None:
    for name in _ID_FIELDS:
        value = holder.get(name)
        if isinstance(value, str) and value:
            try:
                holder[name] = base64.b64encode(bytes.fromhex(value)).decode()
            except ValueError as error:
                raise Rejected(f"{name} {value[:40]!r} is not hex") from error


def to_spans(request: ExportTraceServiceRequest) -> tuple[list[Span], int]:
    """The spans of `request`, and how many were refused for ids that are no ids."""
    spans: list[Span] = []
    refused = 0
    for resource_spans in request.resource_spans:
        service = _service_name(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for otlp in scope_spans.spans:
                if _has_valid_ids(otlp):
                    spans.append(_to_span(otlp, service))
                else:
                    refused += 1
    return spans, refused


def _service_name(attributes: Iterable[KeyValue]) -> str:
    for attribute in attributes:
        if attribute.key == "service.name" and attribute.value.string_value:
            return sys.intern(attribute.value.string_value[:_NAME_CHARS_MAX])
    return "unknown"


def _has_valid_ids(otlp: OtlpSpan) -> bool:
    return (
        len(otlp.trace_id) == _TRACE_ID_BYTES
        and len(otlp.span_id) == _SPAN_ID_BYTES
        and any(otlp.trace_id)
        and any(otlp.span_id)
        and len(otlp.parent_span_id) in {0, _SPAN_ID_BYTES}
    )


def _to_span(otlp: OtlpSpan, service: str) -> Span:
    facts: dict[str, FactValue] = {}
    for attribute in otlp.attributes:
        if attribute.key in FACT_KEYS:
            facts[sys.intern(attribute.key)] = _fact(attribute)
    return Span(
        trace_id=otlp.trace_id.hex(),
        span_id=otlp.span_id.hex(),
        parent_id=otlp.parent_span_id.hex() if any(otlp.parent_span_id) else "",
        service=service,
        name=sys.intern(otlp.name[:_NAME_CHARS_MAX]),
        start_ns=otlp.start_time_unix_nano,
        end_ns=max(otlp.start_time_unix_nano, otlp.end_time_unix_nano),
        error=otlp.status.code == Status.STATUS_CODE_ERROR,
        facts=facts,
        body=_body(otlp),
    )


def _fact(attribute: KeyValue) -> FactValue:
    value = _plain(attribute.value)
    if isinstance(value, str):
        return request_ids.canonical(value) if attribute.key == REQUEST_ID else sys.intern(value)
    return value


def _body(otlp: OtlpSpan) -> bytes:
    """What `read_detail` needs, within `_BODY_BYTES_MAX`."""
    if otlp.ByteSize() <= _BODY_BYTES_MAX:
        return otlp.SerializeToString()
    kept = OtlpSpan(kind=otlp.kind, status=otlp.status)
    kept.attributes.extend(otlp.attributes[:_ATTRIBUTES_MAX])
    kept.events.extend(otlp.events[:_EVENTS_MAX])
    kept.links.extend(otlp.links[:_LINKS_MAX])
    _shorten(kept)
    return kept.SerializeToString()


def _shorten(span: OtlpSpan) -> None:
    """Cut texts, then leave out from the end, until the span is small."""
    span.status.message = span.status.message[:_TEXT_CHARS_MAX]
    for attribute in span.attributes:
        _cut(attribute)
    for event in span.events:
        event.name = event.name[:_NAME_CHARS_MAX]
        del event.attributes[_EVENTS_MAX:]
        for attribute in event.attributes:
            _cut(attribute)
    for link in span.links:
        link.ClearField("attributes")
        link.ClearField("trace_state")
    while span.ByteSize() > _BODY_BYTES_MAX and (span.events or span.attributes):
        del (span.events or span.attributes)[-1]


def _cut(attribute: KeyValue) -> None:
    text = _plain(attribute.value)
    attribute.key = attribute.key[:_NAME_CHARS_MAX]
    if isinstance(text, str):
        attribute.value.CopyFrom(AnyValue(string_value=text))


def _plain(value: AnyValue) -> AttributeValue:
    """A value as a scalar; lists, maps, bytes and numbers that JSON lacks become text. Texts are
    cut."""
    kind = value.WhichOneof("value")
    if kind == "double_value" and not math.isfinite(value.double_value):
        return str(value.double_value)
    if kind in {"bool_value", "int_value", "double_value"}:
        return getattr(value, kind)
    return _text(value, kind or "")[:_TEXT_CHARS_MAX]


def _text(value: AnyValue, kind: str) -> str:
    match kind:
        case "string_value":
            return value.string_value
        case "bytes_value":
            return value.bytes_value[:_TEXT_CHARS_MAX].hex()
        case "array_value":
            items = value.array_value.values[:_ATTRIBUTES_MAX]
            return ", ".join(str(_plain(item)) for item in items)
        case "kvlist_value":
            pairs = value.kvlist_value.values[:_ATTRIBUTES_MAX]
            return ", ".join(f"{pair.key}={_plain(pair.value)}" for pair in pairs)
        case _:
            return ""


def read_detail(body: bytes) -> SpanDetail:
    """Decode what `to_spans` put into a span's body."""
    otlp = OtlpSpan.FromString(body)
    return SpanDetail(
        kind=OtlpSpan.SpanKind.Name(otlp.kind).removeprefix("SPAN_KIND_").lower(),
        status_message=otlp.status.message,
        attributes=_pairs(otlp.attributes),
        events=tuple(
            SpanEvent(event.time_unix_nano, event.name, _pairs(event.attributes))
            for event in otlp.events
        ),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in otlp.links),
    )


def _pairs(attributes: Iterable[KeyValue]) -> Attributes:
    return tuple((attribute.key, _plain(attribute.value)) for attribute in attributes)
