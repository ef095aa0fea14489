"""Failures in the shape of Busbar's admin APIs: {"error": {"message", "type", "code"}}."""

from __future__ import annotations

from busbar_errors import BusbarError, NotFound
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

_CODES = {404: "not_found", 405: "method_not_allowed"}


class ErrorDetail(BaseModel):
    """What went wrong; `code` is stable and for programs."""

    message: str
    type: str
    code: str


class ErrorBody(BaseModel):
    """Every error of this API."""

    error: ErrorDetail


def error_response(status: int, message: str, code: str) -> JSONResponse:
    """An error answer."""
    kind = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004
    detail = ErrorDetail(message=message, type=kind, code=code)
    return JSONResponse(ErrorBody(error=detail).model_dump(), status_code=status)


def install(application: FastAPI) -> None:
    """Answer every failure of `application` in this shape."""

    async def on_http(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = str(error.detail) if isinstance(error, HTTPException) else "internal error"
        return error_response(status, detail, _CODES.get(status, "error"))

    async def on_invalid(_: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        said = "; ".join(f"{'.'.join(map(str, p['loc'][1:]))}: {p['msg']}" for p in problems)
        return error_response(422, said or "invalid request", "invalid_parameter")

    async def on_failure(_: Request, error: Exception) -> Response:
        reason = error.reason if isinstance(error, BusbarError) else "internal error"
        if isinstance(error, NotFound):
            return error_response(404, reason, "not_found")
        return error_response(500, reason, "internal")

    application.add_exception_handler(HTTPException, on_http)
    application.add_exception_handler(RequestValidationError, on_invalid)
    application.add_exception_handler(BusbarError, on_failure)
