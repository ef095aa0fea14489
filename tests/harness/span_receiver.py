"""Where OTEL_EXPORTER_OTLP_ENDPOINT may lead to: a collector that only remembers who sent what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from busbar_runtime.ports import LOOPBACK
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_JSON = "application/json"


@dataclass
class SpanReceiver:
    """The spans that came, each as its service, its trace's id in hex and its name."""

    url: str = ""
    spans: set[tuple[str, str, str]] = field(default_factory=set[tuple[str, str, str]])

    def services(self, trace_id: str) -> set[str]:
        """Who told of this trace."""
        return {service for service, trace, _ in self.spans.copy() if trace == trace_id}

    def take(self, sent: dict[str, Any]) -> None:
        """One export, in OTLP's JSON."""
        for resource in sent["resourceSpans"]:
            said = {one["key"]: one["value"] for one in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                self.spans |= {
                    (said["service.name"]["stringValue"], span["traceId"], span["name"])
                    for span in scope["spans"]
                }


@contextmanager
def span_receiver() -> Iterator[SpanReceiver]:
    """Listen on a free port until the end of the block."""
    made = SpanReceiver()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                made.take(_as_json(body, self.headers["content-type"]))
            known = self.path == "/v1/traces"
            self.send_response(HTTPStatus.OK if known else HTTPStatus.NOT_FOUND)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer((LOOPBACK, 0), Collector) as server:
        made.url = f"http://{LOOPBACK}:{server.server_address[1]}"
        Thread(target=server.serve_forever, name="span-receiver", daemon=True).start()
        try:
            yield made
        finally:
            server.shutdown()


def _as_json(body: bytes, content_type: str) -> dict[str, Any]:
    """Triton and the services may send either form; ids are hex in OTLP's JSON, bytes in ours."""
    if content_type.startswith(_JSON):
        return json.loads(body)
    sent = ExportTraceServiceRequest.FromString(body)
    found = json_format.MessageToDict(sent)
    for resource, shown in zip(sent.resource_spans, found["resourceSpans"], strict=True):
        for scope, of_scope in zip(resource.scope_spans, shown["scopeSpans"], strict=True):
            for span, of_span in zip(scope.spans, of_scope["spans"], strict=True):
                of_span["traceId"] = span.trace_id.hex()
    return found
