"""The HTTP edge as one ASGI application."""

from __future__ import annotations

from typing import Any

from starlette.routing import Route as Address
from starlette.routing import Router
from starlette.types import ASGIApp

from busbar_gateway.adapters.http.connection import bounded_protocol
from busbar_gateway.adapters.http.documents import openapi_document
from busbar_gateway.adapters.http.edge import Edge
from busbar_gateway.adapters.http.exchange import Exchange, as_asgi
from busbar_gateway.adapters.http.kserve import KServe
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.openai import OpenAI
from busbar_gateway.adapters.http.services import Services


def create_app(services: Services) -> ASGIApp:
    """Return the application; serve it with `server_options`."""
    document = openapi_document(services.limits)

    async def openapi(exchange: Exchange) -> None:
        await exchange.respond_json(document)

    router = Router(
        routes=[
            *KServe(services).addresses(),
            *OpenAI(services).addresses(),
            Address("/openapi.json", as_asgi(openapi), methods=["GET"]),
        ],
        redirect_slashes=False,
    )
    return Edge(router, services)


def server_options(limits: HttpLimits) -> dict[str, Any]:
    """Return the uvicorn options under which the limits hold."""
    return {
        "http": bounded_protocol(limits),
        "ws": "none",
        "log_level": "error",
        "timeout_keep_alive": round(limits.keep_alive_s),
        "date_header": False,
        "proxy_headers": False,
    }
