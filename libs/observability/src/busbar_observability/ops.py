"""The ops listener of every service: /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from busbar_observability.bounded import CONNECTIONS_MAX, bounded_protocol

_TICK_S = 1.0

Readiness = Callable[[], list[str]]
"""Returns why the service is not ready; an empty list means that it is."""


def ops_application(readiness: Readiness) -> Starlette:
    """The ops listener as an ASGI application, for tests and for mounting."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_: Request) -> Response:
        reasons = readiness()
        status = "waiting" if reasons else "ready"
        return JSONResponse(
            {"status": status, "reasons": reasons}, status_code=503 if reasons else 200
        )

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ]
    )


class _EmbeddedServer(uvicorn.Server):
    """uvicorn inside somebody else's event loop: leaves signals to the service.

    It ticks once a second, for the Date header, where uvicorn ticks ten times to
    notice that it should stop: a dozen idle listeners are a measurable load. All
    of a process tick at once, because waking up costs more than what is done then.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Take no more requests and finish those in hand."""
        self.should_exit = True
        self._stop.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            rest_s = _TICK_S - asyncio.get_running_loop().time() % _TICK_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), rest_s)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serve_http(
    application: Any,
    host: str,
    port: int,
    *,
    connections_max: int = CONNECTIONS_MAX,
    **options: Any,
) -> AsyncIterator[int]:
    """Serve an ASGI application in this event loop; yields the bound port.

    Beyond `connections_max` 503, unless `options` bring a protocol of their own; they go to
    uvicorn.Config. Raises OSError when the port is taken.
    On leaving, open requests get up to 5 s to finish.
    """
    settings: dict[str, Any] = {
        "http": bounded_protocol(connections_max),
        "log_config": None,
        "access_log": False,
        "lifespan": "off",
        "server_header": False,
        "timeout_graceful_shutdown": 5,
        **options,
    }
    listener = socket.create_server((host, port), backlog=2048)
    server = _EmbeddedServer(uvicorn.Config(application, **settings))
    task = asyncio.create_task(server.serve(sockets=[listener]), name=f"http:{port}")
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if task.done():
            task.result()
        yield int(listener.getsockname()[1])
    finally:
        server.stop()
        await task
