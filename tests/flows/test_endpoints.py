"""What endpoints.json names is there: each address answers as what it is said to be."""

from __future__ import annotations

import re
from http import HTTPStatus

import grpc
import httpx
import pytest
from busbar_runtime.__main__ import main as command_line
from busbar_runtime.platform import Platform
from busbar_runtime.services import SERVICES
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

MEASURES = {
    "gateway": "# HELP busbar_gateway_requests_total",
    "billing": "busbar_billing_records_posted_total",
    "scheduler": "busbar_scheduler_leading 1.0",
    "node-agent": "busbar_agent_triton_ready 1.0",
    "telemetry": "busbar_ready_slots{",
}


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_metrics_of_its_own(platform: Platform, service: str) -> None:
    answer = httpx.get(f"{platform.endpoints['ops'][service]}/metrics", timeout=30)

    assert answer.headers["content-type"].startswith("text/plain")
    assert f"\n{MEASURES[service]}" in answer.text


def test_the_console_is_a_page_and_the_sink_takes_spans(platform: Platform) -> None:
    found = platform.endpoints
    browser = {"accept": "text/html"}
    console = httpx.get(found["console"], headers=browser, timeout=30, follow_redirects=True)
    nothing = trace_service_pb2.ExportTraceServiceRequest().SerializeToString()
    taken = httpx.post(
        f"{found['otlp']}/v1/traces",
        content=nothing,
        headers={"content-type": "application/x-protobuf"},
        timeout=30,
    )

    assert console.headers["content-type"].startswith("text/html")
    assert taken.status_code == HTTPStatus.OK
    assert set(found) >= {"http", "grpc", "nats", "postgres", "console", "otlp", "keys", "pids"}


def test_the_sink_takes_spans_over_grpc_where_it_is_said_to(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    address = platform.endpoints["otlp_grpc"]
    command_line(["status", "--home", str(platform.home.root)])
    shown = capsys.readouterr().out
    with grpc.insecure_channel(address) as channel:
        sink = trace_service_pb2_grpc.TraceServiceStub(channel)
        taken = sink.Export(trace_service_pb2.ExportTraceServiceRequest(), timeout=30)

    assert taken == trace_service_pb2.ExportTraceServiceResponse()
    assert re.search(rf"^  otlp_grpc +{re.escape(address)}$", shown, re.MULTILINE)
