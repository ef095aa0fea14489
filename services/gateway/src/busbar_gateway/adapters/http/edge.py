"""Around every HTTP request: identity, authentication, and failures in the API's own shape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache

import structlog
from busbar_errors import BusbarError
from prometheus_client import Counter

from busbar_gateway.adapters.http.cycle import Cycle
from busbar_gateway.adapters.http.errors import (
    Family,
    NoAddress,
    RequestTimeout,
    Unservable,
    answered_as,
    family_of,
    render_error,
)
from busbar_gateway.adapters.http.exchange import Exchange
from busbar_gateway.adapters.http.idempotency import takes_key
from busbar_gateway.adapters.http.limits import ClientGone
from busbar_gateway.adapters.http.router import Router
from busbar_gateway.adapters.http.services import Services
from busbar_gateway.adapters.identity import new_request_id
from busbar_gateway.domain.routes import Caller
from busbar_gateway.usecases.calls import RefusedCall

PUBLIC_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/openapi.json"})
"""Everything else, existing or not, takes an API key."""

_CLIENT_GONE_STATUS = 499
_PATH_SHOWN_MAX = 256
_log = structlog.get_logger()
_responses = Counter(
    "busbar_gateway_http_responses_total",
    "HTTP requests by API family and status; 499 is a client that went away.",
    ["family", "status"],
)


@cache
def _counted(family: Family, status: int) -> Counter:
    return _responses.labels(family, status)


class Edge:
    """The application: gives each request an identity and a caller, then routes it."""

    def __init__(
        self,
        router: Router,
        services: Services,
        request_ids: Callable[[], bytes] = new_request_id,
    ) -> None:
        self._router = router
        self._keys = services.keys
        self._serving = services.serving
        self._idempotency = services.idempotency
        self._limits = services.limits
        self._standings = services.standings
        self._request_ids = request_ids

    async def __call__(self, cycle: Cycle) -> None:
        exchange = Exchange(
            cycle,
            family_of(cycle.path),
            self._limits,
            self._request_ids(),
            standings=self._standings,
        )
        try:
            await self._answer(exchange)
        finally:
            _counted(exchange.family, exchange.status).inc()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            _require_sound_head(exchange.cycle)
            if exchange.cycle.path not in PUBLIC_PATHS:
                exchange.caller = self._authenticate(exchange)
            if takes_key(exchange):
                await self._idempotency.answer(exchange, self._recorded)
            else:
                await self._serve(exchange)
        except ClientGone:
            exchange.status = _CLIENT_GONE_STATUS
        except asyncio.CancelledError:
            if not exchange.client_gone:
                raise
            exchange.status = _CLIENT_GONE_STATUS
        except Exception as error:  # noqa: BLE001
            await self._answer_failure(exchange, error)

    async def _serve(self, exchange: Exchange) -> None:
        cycle = exchange.cycle
        endpoint, exchange.path_params = self._router.find(cycle.method, cycle.path)
        await endpoint(exchange)

    async def _recorded(self, exchange: Exchange) -> None:
        """Serve a request that no connection holds any more."""
        try:
            await self._serve(exchange)
        except Exception as error:  # noqa: BLE001
            await self._answer_failure(exchange, error)

    def _authenticate(self, exchange: Exchange) -> Caller:
        header = exchange.header(b"authorization")
        return self._keys.authenticate(None if header is None else header.decode("latin-1"))

    async def _answer_failure(self, exchange: Exchange, error: Exception) -> None:
        if exchange.caller.tenant_id and not exchange.called:
            self._serving.refused(_refused(exchange, error), error)
        await _answer_failure(exchange, error)


def _require_sound_head(cycle: Cycle) -> None:
    if cycle.malformed is not None:
        raise cycle.malformed


def _refused(exchange: Exchange, error: Exception) -> RefusedCall:
    status = answered_as(error)[0].http_status
    return RefusedCall(
        request_id=exchange.request_id,
        caller=exchange.caller,
        api="openai" if exchange.family == "openai" else "kserve.http",
        received_unix_ns=exchange.received_unix_ns,
        http_status=status,
        traceparent=exchange.traceparent,
        attributes={
            "http.request.method": exchange.cycle.method,
            "url.path": exchange.cycle.path[:_PATH_SHOWN_MAX],
            "http.response.status_code": status,
        },
    )


async def _answer_failure(exchange: Exchange, error: Exception) -> None:
    if not isinstance(error, (BusbarError, NoAddress, RequestTimeout, Unservable)):
        await _log.aerror(
            "unexpected failure at the HTTP edge",
            request_id=exchange.public_id,
            path=exchange.cycle.path,
            exc_info=error,
        )
    if exchange.started:
        raise error  # half an answer has left: the connection is closed
    await exchange.respond(*render_error(exchange.family, error))
