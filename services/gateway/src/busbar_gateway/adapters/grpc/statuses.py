"""Failures as gRPC statuses, with what a client needs to act on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import structlog
from busbar_errors import BusbarError, Unavailable

from busbar_gateway.adapters.grpc.status_details import details, error_info, retry_info
from busbar_gateway.adapters.identity import new_request_id, public_id
from busbar_gateway.domain.failures import (
    InsufficientQuota,
    InvalidInput,
    answer_for,
    reason_for,
)

log = structlog.get_logger()

Metadata = Sequence[tuple[str, str | bytes]]
Context = grpc.aio.ServicerContext[Any, Any]

_REQUEST_ID = "x-request-id"
_NO_RETRY = ("x-should-retry", "false")
"""As over HTTP: trying again would cost as much and fail the same way."""


def named(request_id: bytes) -> tuple[str, str]:
    """The trailing metadata that tells a client the id of its request."""
    return _REQUEST_ID, public_id(request_id)


@dataclass(frozen=True, slots=True)
class Status:
    """How a failed call ends."""

    code: grpc.StatusCode
    reason: str
    trailing: Metadata


def status_of(error: Exception) -> Status:
    """Return the status of a failure; a bug is logged and its reason kept back."""
    if not isinstance(error, BusbarError):
        log.error("request failed by a bug", exc_info=error)
    answered, reason = answer_for(error), reason_for(error)
    code = grpc.StatusCode[answered.grpc_code]
    number: int = code.value[0]
    named = [error_info(answered.openai_code)] if answered.openai_code else []
    trailing: Metadata = ()
    if isinstance(error, Unavailable):
        trailing = (
            ("retry-after", f"{error.retry_after_s:.3f}"),
            details(number, reason, *named, retry_info(error.retry_after_s)),
        )
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        trailing = (details(number, reason, *named),)
    if isinstance(error, InsufficientQuota):
        trailing = (_NO_RETRY, *trailing)
    return Status(code, reason, trailing)


async def abort(context: Context, error: Exception) -> NoReturn:
    """End a call of the grpcio server with the status of `error` and an id to ask about it by."""
    status = status_of(error)
    trailing = (named(new_request_id()), *status.trailing)
    await context.abort(status.code, status.reason, trailing)
    raise AssertionError("abort returned")


def metadata_of(context: Context) -> Metadata:
    """The client's metadata of a call of the grpcio server."""
    return tuple(context.invocation_metadata() or ())  # pyright: ignore[reportReturnType]


def text_of(metadata: Metadata, name: str) -> str | None:
    """The first value of that name; None when there is none."""
    for key, value in metadata:
        if key == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return None


def only_text_of(metadata: Metadata, name: str) -> str | None:
    """As `text_of`; raise InvalidInput when there is more than one."""
    if sum(key == name for key, _ in metadata) > 1:
        raise InvalidInput(f"the metadata {name} was sent more than once; send it once")
    return text_of(metadata, name)
