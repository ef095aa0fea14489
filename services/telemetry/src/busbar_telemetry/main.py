"""The telemetry service: reads its settings, puts the parts together, serves until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time

import structlog
import uvloop
from busbar_errors import BusbarError
from busbar_messaging.background import end
from busbar_messaging.connection import close, connect
from busbar_observability.logs import configure_logging
from busbar_observability.open_files import make_room
from busbar_observability.ops import ops_application, serve_http
from nats.aio.client import Client
from prometheus_client import REGISTRY

from busbar_telemetry.adapters.buckets import FleetWatch
from busbar_telemetry.adapters.event_consumer import EventConsumer
from busbar_telemetry.adapters.http.application import http_application
from busbar_telemetry.adapters.metrics import FleetCollector
from busbar_telemetry.adapters.otlp_grpc import serve_otlp_grpc
from busbar_telemetry.adapters.otlp_http import (
    ONE_EXPORT_PER_CONNECTION,
    otlp_http_application,
)
from busbar_telemetry.adapters.otlp_intake import SpanIntake
from busbar_telemetry.domain.events import RecentEvents
from busbar_telemetry.domain.fleet import Fleet
from busbar_telemetry.domain.traces import TraceLimits, TraceStore
from busbar_telemetry.settings import TelemetrySettings
from busbar_telemetry.usecases.view_fleet import FleetViewer

log = structlog.get_logger()

_HTTP_CONNECTIONS_MAX = 256


async def serve(settings: TelemetrySettings, stop: asyncio.Event) -> None:
    """Run until `stop`. The OTLP listeners open first: others send spans from their start on."""
    store = TraceStore(_limits(settings))
    intake = SpanIntake(store)
    share = make_room(listeners=4)
    async with contextlib.AsyncExitStack() as stack:
        await _listen_for_spans(settings, intake, share, stack)
        client = await _connect(settings, stop)
        if client is None:
            return
        stack.push_async_callback(close, client)
        fleet, events = Fleet(), RecentEvents()
        watch = FleetWatch(client, fleet, time.monotonic)
        viewer = FleetViewer(
            fleet,
            events,
            time.monotonic,
            time.time,
            lambda: watch.hearing.now_s,
            lambda: client.is_connected and watch.hears,
        )
        consumer = EventConsumer(client, events)
        collector = FleetCollector(viewer, store, intake, events)
        REGISTRY.register(collector)
        stack.callback(REGISTRY.unregister, collector)
        await _listen_for_people(settings, viewer, store, share, stack)
        ops = ops_application(lambda: _not_ready(client, watch))
        host, port = settings.http_host, settings.ops_port
        await stack.enter_async_context(serve_http(ops, host, port, connections_max=share))
        log.info("telemetry serving", http_port=settings.http_port)
        await _run_until(stop, watch, consumer)
        log.info("telemetry stopping")


async def _connect(settings: TelemetrySettings, stop: asyncio.Event) -> Client | None:
    """The connected bus, or None when told to stop before there was one."""
    connecting = asyncio.create_task(connect(settings, "busbar-telemetry"))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    await end([stopping])
    if connecting.done():
        return connecting.result()
    await end([connecting])
    return None


async def _listen_for_spans(
    settings: TelemetrySettings, intake: SpanIntake, share: int, stack: contextlib.AsyncExitStack
) -> None:
    host = settings.otlp_host
    otlp = otlp_http_application(intake)
    await stack.enter_async_context(
        serve_http(
            otlp,
            host,
            settings.otlp_http_port,
            connections_max=share,
            limit_concurrency=_HTTP_CONNECTIONS_MAX,
            headers=ONE_EXPORT_PER_CONNECTION,
        )
    )
    await stack.enter_async_context(serve_otlp_grpc(intake, host, settings.otlp_grpc_port))


async def _listen_for_people(
    settings: TelemetrySettings,
    viewer: FleetViewer,
    store: TraceStore,
    share: int,
    stack: contextlib.AsyncExitStack,
) -> None:
    application = http_application(
        viewer,
        store,
        operator_token=settings.operator_token.get_secret_value(),
        wall_clock=time.time,
        secure_cookie=settings.console_cookie_secure,
    )
    await stack.enter_async_context(
        serve_http(
            application,
            settings.http_host,
            settings.http_port,
            connections_max=share,
            limit_concurrency=_HTTP_CONNECTIONS_MAX,
        )
    )


async def _run_until(stop: asyncio.Event, watch: FleetWatch, consumer: EventConsumer) -> None:
    """Follow the bus; leave when told to stop or when a part fails, which ends the process."""
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(watch.run(), name="fleet"),
            tasks.create_task(consumer.run(), name="events"),
        ]
        try:
            await stop.wait()
        finally:
            await end(running)


def _limits(settings: TelemetrySettings) -> TraceLimits:
    return TraceLimits(
        traces=settings.trace_count_max,
        bytes=settings.trace_bytes_max,
        slow_ns=int(settings.trace_slow_after.total_seconds() * 1e9),
    )


def _not_ready(client: Client, watch: FleetWatch) -> list[str]:
    reasons = [] if client.is_connected else ["not connected to the bus"]
    return reasons + [f"bucket {bucket} not read yet" for bucket in sorted(watch.unread)]


async def _main(settings: TelemetrySettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


def main() -> None:
    """Entry point of the process."""
    settings = TelemetrySettings()  # pyright: ignore[reportCallIssue]
    configure_logging("telemetry", settings.log_level)
    try:
        uvloop.run(_main(settings))
    except BusbarError as error:
        log.error("telemetry cannot start", reason=error.reason)  # noqa: TRY400  no bug to trace
        sys.exit(1)
