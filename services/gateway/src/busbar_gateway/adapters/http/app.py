"""The HTTP edge put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from busbar_gateway.adapters.http.connection import bounded_protocol
from busbar_gateway.adapters.http.documents import openapi_document
from busbar_gateway.adapters.http.edge import Edge
from busbar_gateway.adapters.http.exchange import Exchange
from busbar_gateway.adapters.http.kserve import KServe
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.openai import OpenAI
from busbar_gateway.adapters.http.router import Address, Router
from busbar_gateway.adapters.http.services import Services


def create_app(services: Services) -> Edge:
    """Return the application; serve it with `server_options`."""
    document = openapi_document(services.limits)

    async def openapi(exchange: Exchange) -> None:
        await exchange.respond_json(document)

    router = Router(
        [
            *KServe(services).addresses(),
            *OpenAI(services).addresses(),
            Address("/openapi.json", openapi, "GET"),
        ]
    )
    return Edge(router, services)


def server_options(
    limits: HttpLimits, leaving: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Return the uvicorn options under which the limits hold, and clients leave when asked."""
    return {
        "http": bounded_protocol(limits, leaving),
        "ws": "none",
        "log_level": "error",
        "interface": "asgi3",  # keeps uvicorn from wrapping what is no ASGI application
        "proxy_headers": False,
    }
