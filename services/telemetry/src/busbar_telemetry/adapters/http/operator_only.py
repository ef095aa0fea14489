"""Nothing without credentials: every path but the sign-in page and its assets is the operator's."""

from __future__ import annotations

from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote

from busbar_observability.operator_gate import unauthorized
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from busbar_telemetry.adapters.http.sessions import COOKIE, Sessions

_OPEN_PATHS = frozenset({"/login", "/logout"})
_OPEN_PREFIX = "/static/"
_PROGRAM_PREFIXES = ("/admin/", "/api/", "/openapi.json")

_SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


class OperatorOnly:
    """ASGI middleware: Bearer operator token or a console session, else 401 or the sign-in page."""

    def __init__(
        self, application: ASGIApp, sessions: Sessions, wall_clock: Callable[[], float]
    ) -> None:
        self._application = application
        self._sessions = sessions
        self._wall_clock = wall_clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        headers = Headers(scope=scope)
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _protect(MutableHeaders(scope=message), cacheable=path.startswith(_OPEN_PREFIX))
            await send(message)

        if is_open or self._is_operator(headers):
            await self._application(scope, receive, send_guarded)
        else:
            await _refusal(scope, headers)(scope, receive, send_guarded)

    def _is_operator(self, headers: Headers) -> bool:
        if "authorization" in headers:
            return self._sessions.token.is_given_in(headers)
        cookies = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except CookieError:
            return False
        cookie = cookies.get(COOKIE)
        return bool(cookie) and self._sessions.knows_session(cookie.value, self._wall_clock())


def _refusal(scope: Scope, headers: Headers) -> Response:
    path: str = scope["path"]
    wants_page = scope["method"] in {"GET", "HEAD"} and "text/html" in headers.get("accept", "")
    if wants_page and not path.startswith(_PROGRAM_PREFIXES):
        back_to = f"?next={quote(path)}" if path != "/" else ""
        return RedirectResponse(f"/login{back_to}", status_code=303)
    return unauthorized()


def _protect(headers: MutableHeaders, *, cacheable: bool) -> None:
    for name, value in _SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("cache-control", "max-age=300" if cacheable else "no-store")
