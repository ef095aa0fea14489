"""Calling the admin APIs; every failure becomes a CommandError that says what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal
from urllib.parse import quote

import httpx

from busbar_cli.endpoints import Endpoints, find_endpoints
from busbar_cli.failures import CommandError, Exit

Json = dict[str, Any]

_CONNECT_S, _READ_S, _SEND_S = 5.0, 30.0, 120.0
_PAGE_MAX = 500
_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
_PLACE_PART = r"[a-z0-9][a-z0-9_-]{0,62}"
_NOT_FOUND, _UNAUTHORIZED = 404, 401
_THERE_BEFORE = 200
"""Where what is made anew is answered with 201."""
_MALFORMED = {400, 422}
_UNAVAILABLE = {408, 429, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Listed:
    """As much of a list as was asked for; `more`: it goes on after that."""

    items: list[Json]
    more: bool


@dataclass(slots=True)
class Api:
    """One service's admin API."""

    service: str
    endpoints: Endpoints = field(default_factory=find_endpoints)

    def get(self, path: str, **query: Any) -> Json:
        """GET; query parameters that are None are left out."""
        return self.call("GET", path, params=_given(query))

    def post(self, path: str, body: Json) -> Json:
        """POST JSON."""
        return self.call("POST", path, json=body)

    def post_once(self, path: str, body: Json) -> tuple[Json, bool]:
        """POST JSON of what happens once; also whether it had happened before."""
        response = self._send("POST", path, _READ_S, json=body)
        return _answer(self.service, response), response.status_code == _THERE_BEFORE

    def put(self, path: str, body: Json) -> Json:
        """PUT JSON."""
        return self.call("PUT", path, json=body)

    def delete(self, path: str) -> Json:
        """DELETE."""
        return self.call("DELETE", path)

    def send(self, path: str, content: bytes) -> Json:
        """POST bytes."""
        headers = {"Content-Type": "application/octet-stream"}
        return self.call("POST", path, content=content, headers=headers, read_s=_SEND_S)

    def listed(self, path: str, limit: int, **query: Any) -> Listed:
        """Rows of a list that comes in pages, `limit` at most."""
        found, cursor = list[Json](), None
        while len(found) < limit:
            wanted = min(limit - len(found), _PAGE_MAX)
            page = self.get(path, **query, limit=wanted, cursor=cursor)
            found += page["items"]
            cursor = page.get("next_cursor")
            if not page["items"] or not cursor:
                return Listed(found, more=False)
        return Listed(found, more=True)

    def download(self, path: str, **query: Any) -> bytes:
        """GET what is not JSON, as it is."""
        response = self._send("GET", path, _READ_S, params=_given(query))
        if not response.is_success:
            _answer(self.service, response)
        return response.content

    def call(self, method: str, path: str, *, read_s: float = _READ_S, **options: Any) -> Json:
        """Send a request and return the JSON answer; raises CommandError."""
        return _answer(self.service, self._send(method, path, read_s, **options))

    def _send(self, method: str, path: str, read_s: float, **options: Any) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {self.endpoints.operator_token}",
            **options.pop("headers", {}),
        }
        base_url = self.endpoints.admin_url(self.service).rstrip("/")
        timeout = httpx.Timeout(read_s, connect=_CONNECT_S)
        try:
            return _client(base_url).request(
                method, path, headers=headers, timeout=timeout, **options
            )
        except httpx.HTTPError as error:
            raise CommandError(
                f"{self.service} does not answer at {base_url}: {error}; is it running? "
                "(./just status)",
                Exit.UNAVAILABLE,
            ) from error


def segment(named: str) -> str:
    """What somebody typed as one step of a path; raises CommandError when it can be none."""
    if not named or set(named) == {"."} or not named.isprintable():
        raise CommandError(f"{named!r} is no name", Exit.USAGE)
    return quote(named, safe="")


def place_key(named: str, what: Literal["region/site", "region/site/node"]) -> str:
    """A site or node as the API's JSON names it, with dots; raises CommandError when it is none.

    `named` has slashes, as tables show it, or dots, as JSON does.
    """
    key, parts = named.replace("/", "."), what.count("/") + 1
    if not re.fullmatch(r"\.".join([_PLACE_PART] * parts), key):
        raise CommandError(f"{named!r} is not {what}", Exit.USAGE)
    return key


def request_segment(request_id: str) -> str:
    """A request id as one step of a path; raises CommandError when it is none."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise CommandError(f"{request_id!r} is no request id, req_ and 32 hex digits", Exit.USAGE)
    return request_id


@cache
def _client(base_url: str) -> httpx.Client:
    """One client for each address; certificates are loaded only where they are needed."""
    return httpx.Client(base_url=base_url, verify=base_url.startswith("https"), trust_env=False)


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _answer(service: str, response: httpx.Response) -> Json:
    if not response.is_success:
        raise CommandError(_reason(service, response), _exit_of(response.status_code))
    if not response.content:
        return {}
    try:
        answer = response.json()
    except ValueError as error:
        raise CommandError(f"{service} sent something that is not JSON") from error
    return answer if isinstance(answer, dict) else {"items": answer}


def _reason(service: str, response: httpx.Response) -> str:
    if response.status_code == _UNAUTHORIZED:
        return f"{service} refused the operator token; check BUSBAR_OPERATOR_TOKEN"
    try:
        answer = response.json()
        if "errors" in answer:  # Jaeger's shape
            return "; ".join(str(one["msg"]) for one in answer["errors"])
        error = answer["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return f"{service} answered {response.status_code}: {response.text[:200]}"


def _exit_of(status: int) -> Exit:
    if status == _NOT_FOUND:
        return Exit.NOT_FOUND
    if status in _MALFORMED:
        return Exit.USAGE
    return Exit.UNAVAILABLE if status in _UNAVAILABLE else Exit.FAILED
