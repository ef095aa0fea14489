"""Failures as answers: {"error": {"message", "type", "code"}}, whatever went wrong."""

from __future__ import annotations

from typing import Any

import structlog
from busbar_errors import BusbarError, Conflict, NotFound, Rejected, Unavailable
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from busbar_billing.adapters.http.schemas import ErrorAnswer
from busbar_billing.domain.keys import NotAllowed

log = structlog.get_logger()

_KINDS: list[tuple[type[BusbarError], int, str, str]] = [
    (NotAllowed, 403, "permission_error", "forbidden"),
    (Rejected, 422, "invalid_request_error", "invalid_value"),
    (NotFound, 404, "not_found_error", "not_found"),
    (Conflict, 409, "conflict_error", "conflict"),
    (Unavailable, 503, "unavailable_error", "unavailable"),
]
_MESSAGE_MAX = 1_000
_FIELDS_NAMED_MAX = 5

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The body or the query cannot be read.",
        401: "No operator token, or a wrong one.",
        403: "The API key lacks the scope for this, or would give more than it has.",
        404: "There is no such thing.",
        405: "Not with this method.",
        409: "In conflict with what is there.",
        413: "The body is too large.",
        422: "A value is not acceptable, or a query parameter unknown; the message says which.",
        503: "The database is away; Retry-After says when to ask again.",
    }.items()
}


def answer(
    status: int, message: str, kind: str, code: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error in our shape."""
    body = {"error": {"message": message[:_MESSAGE_MAX], "type": kind, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Answer every failure of `app` in our shape."""
    app.add_exception_handler(BusbarError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


async def _expected(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BusbarError)
    for kind, status, type_name, code in _KINDS:
        if isinstance(error, kind):
            headers = {"Retry-After": "1"} if isinstance(error, Unavailable) else None
            return answer(status, error.reason, type_name, code, headers)
    return answer(500, error.reason, "internal_error", "internal")


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return answer(400, "the body is not JSON", "invalid_request_error", "invalid_json")
    sent_as = request.headers.get("content-type", "")
    whole_body = any(problem["loc"] == ("body",) for problem in problems)
    if whole_body and sent_as and "json" not in sent_as.lower():
        said = f"the body was sent as {sent_as[:80]!r}: send JSON as content-type: application/json"
        return answer(422, said, "invalid_request_error", "invalid_value")
    named = [
        f"{'.'.join(str(part) for part in problem['loc'][1:]) or 'body'}: {problem['msg']}"
        for problem in problems[:_FIELDS_NAMED_MAX]
    ]
    return answer(422, "; ".join(named), "invalid_request_error", "invalid_value")


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed", 422: "invalid_value"}
    code = codes.get(error.status_code, "refused")
    headers = dict(error.headers) if error.headers else None
    return answer(error.status_code, str(error.detail), "invalid_request_error", code, headers)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("admin request failed", path=request.url.path, exc_info=error)
    return answer(500, "this is our fault; it was logged", "internal_error", "internal")
