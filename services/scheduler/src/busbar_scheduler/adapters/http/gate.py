"""What every request of the admin API passes: the operator's token and a bound on its body."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from busbar_scheduler.adapters.http.errors import error_response

_BEARER = "bearer "


class Gate:
    """Refuses whoever has no token, before anything is routed, so that no path is open by mistake.

    Only the routes in `unbounded_paths` may take a body above `body_max_bytes`; they
    bound it themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        operator_token: str,
        body_max_bytes: int,
        unbounded_paths: frozenset[str],
    ) -> None:
        self._app = app
        self._token_digest = hashlib.sha256(operator_token.encode()).digest()
        self._body_max_bytes = body_max_bytes
        self._unbounded_paths = unbounded_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            return
        if not self._authorized(scope):
            response = error_response(
                401, "unauthorized", "give the operator token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
            await response(scope, receive, send)
            return
        if scope["path"] in self._unbounded_paths:
            await self._app(scope, receive, send)
            return
        await self._bounded(scope, receive, send)

    def _authorized(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        text = given[0].decode("latin-1")
        if text[: len(_BEARER)].lower() != _BEARER:
            return False
        digest = hashlib.sha256(text[len(_BEARER) :].strip().encode("latin-1")).digest()
        return hmac.compare_digest(digest, self._token_digest)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._body_max_bytes:
                reason = f"the body is larger than {self._body_max_bytes} bytes"
                await error_response(413, "too_large", reason)(scope, receive, send)
                return
        replay: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replayed() -> Message:
            return replay.pop() if replay else await receive()

        await self._app(scope, replayed, send)
