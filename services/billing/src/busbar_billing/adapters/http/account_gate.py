"""What stands before the customers' API: a key of the tenant with the right scope, and bounds on
bodies and on the crowd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from busbar_errors import Unavailable
from busbar_observability.operator_gate import BoundedBodies
from fastapi import Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from busbar_billing.adapters.http.errors import answer
from busbar_billing.adapters.postgres.keys import Keys
from busbar_billing.domain.keys import ApiKey, is_key_text, key_digest
from busbar_billing.domain.keys import Scope as KeyScope

NoticesUse = Callable[[str, int], None]
"""Told of each call that is let in: the key's id, and when, as Unix time in ns."""

AT_ONCE = 4
"""Calls worked on together: they share the database with the posting of usage."""
WAITING_MAX = 100

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_MAY_READ = frozenset({KeyScope.READ_USAGE, KeyScope.ADMINISTER})
_MAY_CHANGE = frozenset({KeyScope.ADMINISTER})


class AccountGate:
    """ASGI: refuses whoever has no key with the right scope before anything is routed, on unknown
    paths alike. Whose key it is stands in scope["state"]["key"] afterwards."""

    def __init__(
        self, app: ASGIApp, keys: Keys, hmac_secret: bytes, notice_use: NoticesUse
    ) -> None:
        self._app = BoundedBodies(app)
        self._keys = keys
        self._notice_use = notice_use
        self._hmac_secret = hmac_secret
        self._room = asyncio.Semaphore(AT_ONCE)
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on in turn what may pass."""
        if scope["type"] != "http":
            return
        if self._inside >= AT_ONCE + WAITING_MAX:
            await _busy("too many calls at once: ask again")(scope, receive, send)
            return
        self._inside += 1
        try:
            async with self._room:
                refusal = await self._refusal(scope)
                await (refusal or self._app)(scope, receive, send)
        finally:
            self._inside -= 1

    async def _refusal(self, scope: Scope) -> Response | None:
        text = _bearer_token(Headers(scope=scope))
        if not text:
            return _unauthorized("no API key: send Authorization: Bearer KEY")
        if not is_key_text(text):
            return _unauthorized("this is not an API key")
        try:
            key = await self._find(key_digest(self._hmac_secret, text))
        except Unavailable:
            return _busy("keys cannot be looked up now: ask again")
        if key is None:
            return _unauthorized("this API key is unknown, was revoked or has expired")
        allowed = _MAY_READ if scope["method"] in _READING else _MAY_CHANGE
        if not allowed.intersection(key.scopes):
            wanted = " or ".join(sorted(allowed))
            message = f"this API key lacks the scope {wanted}"
            return answer(403, message, "permission_error", "forbidden")
        scope.setdefault("state", {})["key"] = key
        self._notice_use(key.key_id, time.time_ns())
        return None

    async def _find(self, digest: bytes) -> ApiKey | None:
        now_ms = time.time_ns() // 1_000_000
        for key in await self._keys.by_digests([digest]):
            if digest in key.secrets_at(now_ms):
                return key
        return None


def calling_tenant(request: Request) -> str:
    """The tenant of the key that was presented; the only place where routes learn of a tenant."""
    key: ApiKey = request.state.key
    return key.tenant_id


def calling_deployments(request: Request) -> tuple[str, ...]:
    """Deployments that the presented key is limited to; empty: it is not."""
    key: ApiKey = request.state.key
    return key.deployments


def _bearer_token(headers: Headers) -> str:
    given = headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else ""


def _unauthorized(message: str) -> Response:
    headers = {"www-authenticate": 'Bearer realm="busbar"'}
    return answer(401, message, "authentication_error", "unauthorized", headers)


def _busy(message: str) -> Response:
    return answer(503, message, "unavailable_error", "unavailable", {"Retry-After": "1"})
