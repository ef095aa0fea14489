"""The operator's console: the fleet, recent requests, one trace. Pages need no JavaScript.

With it they refresh in place: the script asks for the same page with
`x-partial` and gets the moving part alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from busbar_telemetry.adapters.http import formats
from busbar_telemetry.adapters.http.sessions import COOKIE, LIFETIME_S, FailureLimit, Sessions
from busbar_telemetry.adapters.otlp_decoding import read_detail
from busbar_telemetry.domain import request_ids
from busbar_telemetry.domain.requests import requests_of
from busbar_telemetry.domain.traces import TraceQuery, TraceStore
from busbar_telemetry.domain.waterfall import lay_out
from busbar_telemetry.usecases.list_requests import recent_requests
from busbar_telemetry.usecases.view_fleet import FleetViewer

_PACKAGE = Path(__file__).parents[2]
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FORM_BYTES_MAX = 4096
_REQUESTS_SHOWN = 100


class Console:
    """The pages, rendered from templates that are read once."""

    def __init__(
        self,
        viewer: FleetViewer,
        store: TraceStore,
        sessions: Sessions,
        wall_clock: Callable[[], float],
        *,
        secure_cookie: bool,
    ) -> None:
        self._viewer, self._store, self._sessions = viewer, store, sessions
        self._wall_clock, self._secure_cookie = wall_clock, secure_cookie
        self._failures = FailureLimit()
        self._assets = {path.name: path.read_bytes() for path in (_PACKAGE / "static").iterdir()}
        self._templates = Environment(
            loader=FileSystemLoader(_PACKAGE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(formats.FILTERS)
        digest = hashlib.sha256(b"".join(self._assets[name] for name in sorted(self._assets)))
        self._assets_version = digest.hexdigest()[:12]

    def mount(self, application: FastAPI) -> None:
        """Add the pages; they are not part of the documented API."""
        add = application.add_route
        add("/", self.overview, include_in_schema=False)
        add("/requests", self.requests, include_in_schema=False)
        add("/requests/{request_id}", self.request, include_in_schema=False)
        add("/traces/{trace_id}", self.trace, include_in_schema=False)
        add("/login", self.login, methods=["GET", "POST"], include_in_schema=False)
        add("/logout", self.logout, methods=["POST"], include_in_schema=False)
        add("/static/{name}", self.asset, include_in_schema=False)

    async def overview(self, request: Request) -> Response:
        """The fleet: deployments, regions, sites, nodes, gateways, events."""
        view = self._viewer.view()
        nodes = {node.node: node for node in view.nodes}
        return self._live_page(request, "overview", view=view, nodes=nodes)

    async def requests(self, request: Request) -> Response:
        """Recent traced requests, filtered by the query."""
        asked = request.query_params
        query = TraceQuery(
            limit=_REQUESTS_SHOWN,
            service=asked.get("service", ""),
            deployment=asked.get("deployment", ""),
            errors_only=asked.get("errors_only") == "true",
        )
        deployments = [name for name, _ in self._viewer.fleet.deployments.items()]
        return self._live_page(
            request,
            "requests",
            query=query,
            deployments=deployments,
            services=self._store.services(),
            requests=recent_requests(self._store, query),
        )

    async def request(self, request: Request) -> Response:
        """From a request id to its trace."""
        request_id = request_ids.canonical(request.path_params["request_id"])
        trace = self._store.of_request(request_id)
        if trace is None:
            return self._missing(f"request {request_id[:80]}")
        return RedirectResponse(f"/traces/{trace.trace_id}", status_code=HTTPStatus.SEE_OTHER)

    async def trace(self, request: Request) -> Response:
        """One trace as a waterfall."""
        trace_id: str = request.path_params["trace_id"]
        trace = self._store.get(trace_id.lower())
        if trace is None:
            return self._missing(f"trace {trace_id[:80]}")
        return self._page(
            "trace.html",
            trace=trace,
            requests=requests_of(trace),
            waterfall=lay_out(trace.spans.values()),
            detail_of={span.span_id: read_detail(span.body) for span in trace.spans.values()},
        )

    async def login(self, request: Request) -> Response:
        """The sign-in page and what it sends."""
        next_path = _safe_path(request.query_params.get("next", "/"))
        if request.method != "POST":
            return self._page("login.html", problem="", next_path=next_path)
        if self._failures.is_reached(time.monotonic()):
            return self._login_failed(
                429, "Too many wrong tokens. Try again in a minute.", next_path
            )
        token = await _form_field(request, "token")
        if not self._sessions.token.matches(token.encode()):
            self._failures.failed(time.monotonic())
            return self._login_failed(401, "That is not the operator token.", next_path)
        response = RedirectResponse(next_path, status_code=HTTPStatus.SEE_OTHER)
        response.set_cookie(
            COOKIE,
            self._sessions.issue(self._wall_clock()),
            max_age=LIFETIME_S,
            httponly=True,
            samesite="strict",
            secure=self._secure_cookie or request.url.scheme == "https",
        )
        return response

    def _login_failed(self, status: int, problem: str, next_path: str) -> Response:
        return self._page("login.html", status, problem=problem, next_path=next_path)

    async def logout(self, _: Request) -> Response:
        """End the session in this browser."""
        response = RedirectResponse("/login", status_code=HTTPStatus.SEE_OTHER)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    async def asset(self, request: Request) -> Response:
        """A style sheet, script or picture, from memory."""
        name: str = request.path_params["name"]
        body = self._assets.get(name)
        if body is None:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        return Response(body, media_type=_MEDIA_TYPES[Path(name).suffix])

    def _live_page(self, request: Request, name: str, **context: Any) -> Response:
        partial = "x-partial" in request.headers
        return self._page(f"{name}_live.html" if partial else f"{name}.html", **context)

    def _missing(self, what: str) -> Response:
        return self._page("missing.html", HTTPStatus.NOT_FOUND, what=what)

    def _page(self, template: str, status: int = 200, **context: Any) -> Response:
        page = self._templates.get_template(template).render(
            assets_version=self._assets_version, **context
        )
        return HTMLResponse(page, status)


async def _form_field(request: Request, name: str) -> str:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES_MAX:
            return ""
    values = parse_qs(body.decode("utf-8", "replace")).get(name)
    return values[0].strip() if values else ""


def _safe_path(path: str) -> str:
    """`path` when it leads to a page of ours, else the first page."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_ours and path.isprintable() else "/"
