"""Failures in the admin API's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping

from busbar_errors import BusbarError, Conflict, NotFound, Rejected, Unavailable
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    415: "unsupported_type",
    422: "invalid",
}
_TYPE_OF_STATUS = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error"}
_SERVER_ERRORS_FROM = 500
_ERRORS_SHOWN_MAX = 10


class ErrorDetail(BaseModel):
    """What happened, to which thing, and what to do next."""

    message: str
    type: str
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that says what went wrong."""
    kind = "server_error" if status >= _SERVER_ERRORS_FROM else "invalid_request_error"
    body = {"message": message, "type": _TYPE_OF_STATUS.get(status, kind), "code": code}
    return JSONResponse({"error": body}, status_code=status, headers=dict(headers or {}))


def answer_failures(app: FastAPI) -> None:
    """Give every failure of the app the shape of ErrorBody."""

    async def known(_: Request, error: Exception) -> Response:
        reason = error.reason if isinstance(error, BusbarError) else str(error)
        match error:
            case NotFound():
                return error_response(404, "not_found", reason)
            case Conflict():
                return error_response(409, "conflict", reason)
            case Rejected():
                return error_response(422, "rejected", reason)
            case Unavailable():
                wait = {"Retry-After": str(math.ceil(error.retry_after_s))}
                return error_response(503, "unavailable", reason, wait)
            case _:
                return error_response(500, "internal", "an error of ours; it has been logged")

    async def invalid(_: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        shown = [
            f"{'.'.join(str(part) for part in one['loc'][1:]) or 'body'}: {one['msg']}"
            for one in problems[:_ERRORS_SHOWN_MAX]
        ]
        return error_response(422, "invalid", "; ".join(shown))

    async def refused(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = str(error.detail) if isinstance(error, HTTPException) else "error"
        headers = error.headers if isinstance(error, HTTPException) else None
        return error_response(status, _CODES.get(status, "refused"), detail, headers)

    app.add_exception_handler(BusbarError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, known)
