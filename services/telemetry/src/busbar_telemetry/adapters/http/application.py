"""Telemetry's HTTP listener as one ASGI application."""

from __future__ import annotations

from collections.abc import Callable

from busbar_observability.operation_summaries import summarised
from fastapi import FastAPI
from starlette.types import ASGIApp

from busbar_telemetry.adapters.http import errors
from busbar_telemetry.adapters.http.admin import admin_routes
from busbar_telemetry.adapters.http.console import Console
from busbar_telemetry.adapters.http.jaeger_api import jaeger_routes
from busbar_telemetry.adapters.http.operator_only import OperatorOnly
from busbar_telemetry.adapters.http.sessions import Sessions
from busbar_telemetry.domain.traces import TraceStore
from busbar_telemetry.usecases.view_fleet import FleetViewer


def http_application(
    viewer: FleetViewer,
    store: TraceStore,
    *,
    operator_token: str,
    wall_clock: Callable[[], float],
    secure_cookie: bool,
) -> ASGIApp:
    """Admin API, Jaeger's query API and the console, for the operator only."""
    sessions = Sessions(operator_token)
    application = FastAPI(title="Busbar telemetry", version="1", docs_url=None, redoc_url=None)
    errors.install(application)
    application.openapi = summarised(application.openapi)
    application.include_router(admin_routes(viewer, store))
    application.include_router(jaeger_routes(store))
    console = Console(viewer, store, sessions, wall_clock, secure_cookie=secure_cookie)
    console.mount(application)
    return OperatorOnly(application, sessions, wall_clock)
