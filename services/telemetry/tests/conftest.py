"""What several test modules of telemetry use."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from busbar_telemetry.adapters.http.application import http_application
from busbar_telemetry.adapters.otlp_intake import SpanIntake
from busbar_telemetry.domain.events import RecentEvents
from busbar_telemetry.domain.fleet import Fleet
from busbar_telemetry.domain.traces import TraceLimits, TraceStore
from busbar_telemetry.usecases.view_fleet import FleetViewer
from starlette.types import ASGIApp

OPERATOR_TOKEN = "operator-token-of-the-tests"


@dataclass(frozen=True)
class Telemetry:
    """The service without its bus."""

    fleet: Fleet
    events: RecentEvents
    store: TraceStore
    intake: SpanIntake
    application: ASGIApp
    token: str = OPERATOR_TOKEN


@pytest.fixture
def telemetry() -> Telemetry:
    """Telemetry as it starts: nothing seen yet."""
    fleet, events, store = Fleet(), RecentEvents(), TraceStore(TraceLimits())
    viewer = FleetViewer(fleet, events, time.monotonic, time.time, time.monotonic, lambda: True)
    application = http_application(
        viewer, store, operator_token=OPERATOR_TOKEN, wall_clock=time.time, secure_cookie=False
    )
    return Telemetry(fleet, events, store, SpanIntake(store), application)
