"""Failures as gRPC statuses, with what a client needs to act on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from busbar_errors import BusbarError, Unavailable

from busbar_gateway.domain.failures import answer_for, reason_for

log = structlog.get_logger()

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[RequestT, Context], Awaitable[ResponseT]]

REQUEST_ID = "x-request-id"


async def abort(context: Context, error: Exception, request_id: str = "") -> NoReturn:
    """End the call with the status that `error` has over gRPC."""
    if not isinstance(error, BusbarError):
        log.error("request failed by a bug", request_id=request_id, exc_info=error)
    trailing: list[tuple[str, str]] = [(REQUEST_ID, request_id)] if request_id else []
    if isinstance(error, Unavailable):
        trailing.append(("retry-after", f"{error.retry_after_s:.3f}"))
    code = grpc.StatusCode[answer_for(error).grpc_code]
    await context.abort(code, reason_for(error), tuple(trailing))
    raise AssertionError("abort returned")


def failing_clearly(handler: Handler[RequestT, ResponseT]) -> Handler[RequestT, ResponseT]:
    """Wrap a handler so that what it raises becomes a status."""

    async def handle(request: RequestT, context: Context) -> ResponseT:
        try:
            return await handler(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001
            await abort(context, error)

    return handle
