"""The admin API, Jaeger's query API and the console: what they say, and to whom."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from busbar_telemetry.adapters.http.sessions import LIFETIME_S, Sessions
from busbar_telemetry.domain.events import Event
from busbar_telemetry.domain.rates import Counters
from busbar_telemetry.domain.reports import (
    DeploymentReport,
    GatewayReport,
    LeaseReport,
    LoadReport,
    NodeReport,
    ReplicaReport,
    RouteReport,
    TargetReport,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE_ID = "ab" * 16
REQUEST_ID = "req_0197f3c2a1b27cde8f00112233445566"
HTML = {"accept": "text/html"}
PAGES = ("/", "/requests", f"/traces/{TRACE_ID}", f"/requests/{REQUEST_ID}")
PROGRAMS = (
    "/admin/v1/fleet",
    "/admin/v1/traces",
    f"/admin/v1/requests/{REQUEST_ID}",
    "/api/services",
    "/api/services/gateway/operations",
    "/api/traces",
    f"/api/traces/{TRACE_ID}",
    "/openapi.json",
)


@pytest.fixture
async def stranger(telemetry: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(telemetry.application)
    async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
        yield client


@pytest.fixture
def operator(stranger: httpx.AsyncClient, telemetry: Any) -> httpx.AsyncClient:
    stranger.headers["authorization"] = f"Bearer {telemetry.token}"
    return stranger


def fill(telemetry: Any) -> None:
    """A node, a deployment, a gateway, an event and a trace."""
    now_s = time.monotonic()
    fleet = telemetry.fleet
    broken = ReplicaReport("<b>chat</b>", "sha256:bb", "failed", "out of <memory>", 1)
    ready = ReplicaReport("embed", "sha256:aa", "ready", "", 4)
    node = NodeReport("run1", "0.1.0", 8192, 8, (), False, "ready", "", 1, False, (broken, ready))
    fleet.node_reported("r1.s1.n1", node, now_s)
    fleet.node_lived("r1.s1.n1", LeaseReport(True, 3, 10, 1), now_s)
    fleet.deployments.put(
        "embed", DeploymentReport("minilm", "1", "sha256:aa", "embed", "embed-small", 1, 4, (), ())
    )
    fleet.routes.put("embed", RouteReport((TargetReport("r1", 4, 1),), ""))
    load = LoadReport(2, 5, Counters(completed=7))
    fleet.gateway_reported("g1", GatewayReport("r1", "a", {"embed": load}), now_s)
    telemetry.events.add(
        Event(
            1, int(time.time() * 1000), "agent", "triton_lost", "error", "r1.s1.n1", "Triton lost"
        )
    )
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "gateway"
    span = resource.scope_spans.add().spans.add(name="POST /v1/embeddings", kind=2)
    span.trace_id, span.span_id = bytes.fromhex(TRACE_ID), b"s" * 8
    span.start_time_unix_nano, span.end_time_unix_nano = 10**18, 10**18 + 12_345_678
    for key, value in {"busbar.request_id": REQUEST_ID, "busbar.tenant": "<script>"}.items():
        span.attributes.add(key=key).value.string_value = value
    span.attributes.add(key="busbar.cost_nanos").value.int_value = 1_250
    telemetry.intake.accept(request)


async def test_every_path_refuses_without_credentials(stranger: httpx.AsyncClient) -> None:
    for path in (*PAGES, *PROGRAMS, "/nope", "/admin/v1/nope"):
        answer = await stranger.get(path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "unauthorized"
    for token in ("wrong", "", "operator-token-of-the-test"):
        answer = await stranger.get("/admin/v1/fleet", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 401


async def test_browsers_are_sent_to_sign_in_and_programs_are_not(
    stranger: httpx.AsyncClient,
) -> None:
    page = await stranger.get("/requests", headers=HTML)
    program = await stranger.get("/admin/v1/fleet", headers=HTML)

    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/requests")
    assert program.status_code == 401


async def test_signing_in_gives_a_strict_cookie_that_opens_the_console(
    stranger: httpx.AsyncClient, telemetry: Any
) -> None:
    fill(telemetry)
    refused = await stranger.post("/login", data={"token": "wrong"})
    assert refused.status_code == 401
    assert not stranger.cookies
    answer = await stranger.post("/login?next=/requests", data={"token": telemetry.token})

    assert (answer.status_code, answer.headers["location"]) == (303, "/requests")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert telemetry.token not in cookie
    for path in PAGES:
        page = await stranger.get(path, headers=HTML, follow_redirects=True)
        assert page.status_code == 200, path
    await stranger.post("/logout")
    assert (await stranger.get("/", headers=HTML)).status_code == 303


async def test_signing_in_never_leads_elsewhere(
    stranger: httpx.AsyncClient, telemetry: Any
) -> None:
    for target in ("https://evil.example", "//evil.example", "/\\evil.example", "/\r\nx: y"):
        answer = await stranger.post(
            "/login", params={"next": target}, data={"token": telemetry.token}
        )
        assert answer.headers["location"] == "/", target


async def test_many_wrong_tokens_are_slowed_down(
    stranger: httpx.AsyncClient, telemetry: Any
) -> None:
    statuses = [(await stranger.post("/login", data={"token": "x"})).status_code for _ in range(12)]
    last = await stranger.post("/login", data={"token": telemetry.token})

    assert statuses == [401] * 10 + [429] * 2
    assert last.status_code == 429


def test_a_session_ends_and_cannot_be_forged() -> None:
    sessions = Sessions("one")
    cookie = sessions.issue(1_000.0)

    assert sessions.knows_session(cookie, 1_000.0 + LIFETIME_S - 1)
    assert not sessions.knows_session(cookie, 1_000.0 + LIFETIME_S + 1)
    assert not Sessions("two").knows_session(cookie, 1_000.0)
    later = str(int(cookie.partition(".")[0]) + 1) + cookie[cookie.index(".") :]
    for forged in (later, "", ".", "9999999999.", "9999999999.é", "x" * 10_000):
        assert not sessions.knows_session(forged, 1_000.0)


async def test_the_fleet_in_json(operator: httpx.AsyncClient, telemetry: Any) -> None:
    fill(telemetry)
    fleet = (await operator.get("/admin/v1/fleet")).json()

    assert fleet["bus"] == {"connected": True}
    [node] = fleet["nodes"]
    assert (node["node"], node["state"], node["in_flight"], node["slots"]) == (
        "r1.s1.n1",
        "ok",
        3,
        8,
    )
    assert fleet["regions"][0]["sites"][0]["totals"]["nodes_ok"] == 1
    [deployment] = fleet["deployments"]
    assert (deployment["state"], deployment["queued"], deployment["in_flight"]) == ("ready", 5, 2)
    assert fleet["events"][0]["text"] == "Triton lost"
    schema = (await operator.get("/openapi.json")).json()
    assert "FleetView" in schema["components"]["schemas"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["temperature", "busbar.tokens.input", "busbar.cost_nanos"])
async def test_a_number_that_json_lacks_hides_no_trace(
    operator: httpx.AsyncClient, telemetry: Any, key: str, number: float
) -> None:
    """One odd span must not keep the others from being read."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="odd")
    span.trace_id, span.span_id = bytes.fromhex(TRACE_ID), b"s" * 8
    span.attributes.add(key=key).value.double_value = number
    telemetry.intake.accept(request)
    paths = (f"/api/traces/{TRACE_ID}", "/api/traces", "/admin/v1/traces", f"/traces/{TRACE_ID}")
    shown = [await operator.get(path) for path in paths]

    assert [answer.status_code for answer in shown] == [200] * 4


async def test_traces_in_both_shapes(operator: httpx.AsyncClient, telemetry: Any) -> None:
    fill(telemetry)

    listed = (await operator.get("/admin/v1/traces", params={"limit": 5})).json()["items"]
    assert [item["trace_id"] for item in listed] == [TRACE_ID]
    assert listed[0]["cost_nanos"] == 1_250
    found = (await operator.get(f"/admin/v1/requests/{REQUEST_ID[4:]}")).json()
    assert found["trace_id"] == TRACE_ID
    jaeger = (await operator.get(f"/api/traces/{TRACE_ID.upper()}")).json()
    assert jaeger["data"][0]["spans"][0]["duration"] == 12_345
    assert (await operator.get("/api/services")).json()["data"] == ["gateway"]
    assert len((await operator.get("/api/traces?service=gateway")).json()["data"]) == 1
    assert (await operator.get("/api/traces?service=other")).json()["data"] == []
    operations = (await operator.get("/api/services/gateway/operations")).json()
    assert operations["data"] == ["POST /v1/embeddings"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/traces/" + "00" * 16, 404),
        ("/api/traces/not-hex", 400),
        ("/admin/v1/requests/nope", 404),
        ("/admin/v1/traces?limit=0", 422),
        ("/admin/v1/traces?limit=many", 422),
        ("/admin/v1/traces?errors_only=perhaps", 422),
        ("/admin/v1/nope", 404),
        ("/traces/nope", 404),
        ("/requests/nope", 404),
        ("/static/../main.py", 404),
        ("/static/nope.css", 404),
    ],
)
async def test_what_is_not_there_or_not_valid(
    operator: httpx.AsyncClient, path: str, status: int
) -> None:
    assert (await operator.get(path)).status_code == status


async def test_pages_escape_what_others_named_and_load_nothing_from_elsewhere(
    operator: httpx.AsyncClient, telemetry: Any
) -> None:
    fill(telemetry)
    for path in PAGES:
        page = await operator.get(path, headers=HTML, follow_redirects=True)
        assert "<script>" not in page.text
        assert "<b>chat" not in page.text
        assert "://" not in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
    trace = await operator.get(f"/traces/{TRACE_ID}")
    assert "&lt;script&gt;" in trace.text
    assert "12.3 ms" in trace.text
    assert "$0.00000125" in trace.text


async def test_a_live_page_can_be_asked_for_its_moving_part(
    operator: httpx.AsyncClient, telemetry: Any
) -> None:
    fill(telemetry)
    for path in ("/", "/requests"):
        part = await operator.get(path, headers={"x-partial": "1"})
        assert "<html" not in part.text
        assert "embed" in part.text


async def test_the_document_says_what_each_operation_does(operator: httpx.AsyncClient) -> None:
    document = (await operator.get("/openapi.json")).json()
    named = [
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, one in operations.items()
        if one["operationId"].startswith(one["summary"].lower().replace(" ", "_") + "_")
    ]

    assert len(document["paths"]) > 3
    assert named == []
