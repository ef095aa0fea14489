"""What stands before every route: the operator's token, and a bound on bodies."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from busbar_billing.adapters.http.errors import raw_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_BYTES_MAX = 1024 * 1024
_BEARER = b"bearer "


class Guard:
    """Refuses whoever does not present the operator's token, on known and unknown paths alike."""

    def __init__(self, app: Application, token: str) -> None:
        self._app = app
        self._digest = hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if not self._admits(headers.get(b"authorization", b"")):
            await _refuse(send, 401, "give the operator's token as a Bearer token", "unauthorized")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            await _refuse(send, 413, f"at most {BODY_BYTES_MAX} bytes of body", "body_too_large")
            return
        body = await _read(receive)
        if body is None:
            await _refuse(send, 413, f"at most {BODY_BYTES_MAX} bytes of body", "body_too_large")
            return
        await self._app(scope, _replay(body, receive), send)

    def _admits(self, header: bytes) -> bool:
        if header[: len(_BEARER)].lower() != _BEARER:
            return False
        presented = hashlib.sha256(header[len(_BEARER) :].strip()).digest()
        return hmac.compare_digest(presented, self._digest)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when it is too large or the client went away."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    read = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(send: Send, status: int, message: str, code: str) -> None:
    body = raw_body(message, code)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:  # noqa: PLR2004
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
