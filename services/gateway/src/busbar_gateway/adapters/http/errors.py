"""Failures in the shape of the API that was called: OpenAI's under /v1, KServe's under /v2."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import orjson

from busbar_gateway.domain.failures import (
    Answered,
    DeadlineExceeded,
    IdempotencyKeyReused,
    IdempotencyShareSpent,
    IdempotentAnswerDropped,
    InsufficientQuota,
    InvalidInput,
    ModelFailed,
    Unauthenticated,
    Unavailable,
    UnknownDeployment,
    answer_for,
    reason_for,
)

Headers = list[tuple[bytes, bytes]]
Family = Literal["openai", "kserve"]


class BadParameter(InvalidInput):
    """A field of an OpenAI request is wrong, missing or not offered; `code` says which."""

    def __init__(self, reason: str, param: str | None, code: str) -> None:
        super().__init__(reason, param)
        self.code = code


@contextlib.contextmanager
def blamed_on(param: str) -> Iterator[None]:
    """Name `param` in what the model itself refuses, which knows tensors and not fields."""
    try:
        yield
    except InvalidInput as error:
        error.param = error.param or param
        raise


class RequestTimeout(Exception):
    """The client was too slow in sending its request."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unservable(Exception):
    """HTTP itself has a `status` for what is wrong with this request; no other follows it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class NoAddress(Exception):
    """There is nothing at an address, or not for the method; `allowed` names those that are."""

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__()
        self.allowed = allowed


_INVALID = "invalid_request_error"
_UNKNOWN_URL = Answered(404, _INVALID, "unknown_url", "")
_METHOD_NOT_ALLOWED = Answered(405, _INVALID, "method_not_allowed", "")
_REQUEST_TIMEOUT = Answered(408, _INVALID, "request_timeout", "")
_NOT_WORTH_RETRYING = (
    InsufficientQuota,
    ModelFailed,
    DeadlineExceeded,
    IdempotencyKeyReused,
    IdempotencyShareSpent,
    IdempotentAnswerDropped,
)
"""A retry would cost as much and fail the same way; OpenAI's SDKs would repeat a 409."""


def family_of(path: str) -> Family:
    """The API whose shape errors at `path` have."""
    return "kserve" if path.startswith("/v2") else "openai"


def answered_as(error: BaseException) -> tuple[Answered, str]:
    """Return status and names of a failure, and what the customer may read about it."""
    if isinstance(error, RequestTimeout):
        return _REQUEST_TIMEOUT, error.reason
    if isinstance(error, Unservable):
        return Answered(error.status, _INVALID, None, ""), error.reason
    if isinstance(error, NoAddress):
        if error.allowed:
            return _METHOD_NOT_ALLOWED, "This address does not take that method."
        return _UNKNOWN_URL, "There is nothing at this address."
    return answer_for(error), reason_for(error)


def error_document(family: Family, error: BaseException) -> dict[str, Any]:
    """Return the JSON that tells a client of this API family what went wrong."""
    answered, reason = answered_as(error)
    if family == "kserve":
        return {"error": reason}
    return {
        "error": {
            "message": reason,
            "type": answered.openai_type,
            "param": _param_of(error),
            "code": getattr(error, "code", None) or answered.openai_code,
        }
    }


def _param_of(error: BaseException) -> str | None:
    return "model" if isinstance(error, UnknownDeployment) else getattr(error, "param", None)


def render_error(family: Family, error: BaseException) -> tuple[int, Headers, bytes]:
    """Return status, headers and body for a failure."""
    answered, _ = answered_as(error)
    headers: Headers = [(b"content-type", b"application/json")]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="busbar"'))
    if isinstance(error, Unavailable):
        headers += _retry_after(error.retry_after_s)
    if isinstance(error, _NOT_WORTH_RETRYING):
        headers.append((b"x-should-retry", b"false"))
    if isinstance(error, (RequestTimeout, Unservable)):
        headers.append((b"connection", b"close"))
    if isinstance(error, NoAddress) and error.allowed:
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    return answered.http_status, headers, orjson.dumps(error_document(family, error))


def _retry_after(seconds: float) -> Headers:
    """Both forms: whole seconds for everyone, milliseconds for OpenAI's SDKs, which prefer them."""
    return [
        (b"retry-after", str(max(1, math.ceil(seconds))).encode()),
        (b"retry-after-ms", str(max(1, round(seconds * 1000))).encode()),
    ]
