"""What stands before every admin API: the operator's token, and a bound on bodies."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES_MAX = 1024 * 1024


class OperatorToken:
    """The operator's token. Comparing takes the same time whatever is presented."""

    def __init__(self, token: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()

    def is_given_in(self, headers: Headers) -> bool:
        """Whether the one Authorization header holds it as a Bearer token."""
        given = headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        return scheme.lower() == "bearer" and self.matches(token.strip().encode("latin-1"))

    def matches(self, presented: bytes) -> bool:
        """Whether `presented` is it."""
        return hmac.compare_digest(hashlib.sha256(presented).digest(), self._digest)


class OperatorGate:
    """ASGI: refuses whoever has no token before anything is routed, on unknown paths alike.

    Only the routes in `unbounded_paths` may take a body above BODY_BYTES_MAX; they
    bound it themselves.
    """

    def __init__(
        self, app: ASGIApp, token: OperatorToken, *, unbounded_paths: Collection[str] = ()
    ) -> None:
        self._app = app
        self._bounded = BoundedBodies(app)
        self._token = token
        self._unbounded_paths = frozenset(unbounded_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        if not self._token.is_given_in(headers):
            await unauthorized()(scope, receive, send)
        elif scope["path"] in self._unbounded_paths:
            await self._app(scope, receive, send)
        else:
            await self._bounded(scope, receive, send)


class BoundedBodies:
    """ASGI: reads the whole body first, and refuses one above BODY_BYTES_MAX."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is small enough."""
        if _announced_bytes(Headers(scope=scope)) > BODY_BYTES_MAX:
            await _too_large()(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > BODY_BYTES_MAX:
                await _too_large()(scope, receive, send)
                return
        replay: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replayed() -> Message:
            return replay.pop() if replay else await receive()

        await self._app(scope, replayed, send)


def unauthorized() -> Response:
    """401 in the admin APIs' shape."""
    message = "the operator token is missing or wrong: send Authorization: Bearer TOKEN"
    error = {"message": message, "type": "authentication_error", "code": "unauthorized"}
    headers = {"www-authenticate": 'Bearer realm="busbar"'}
    return JSONResponse({"error": error}, status_code=401, headers=headers)


def _too_large() -> Response:
    message = f"the body is larger than {BODY_BYTES_MAX} bytes"
    error = {"message": message, "type": "invalid_request_error", "code": "body_too_large"}
    return JSONResponse({"error": error}, status_code=413)


def _announced_bytes(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0
