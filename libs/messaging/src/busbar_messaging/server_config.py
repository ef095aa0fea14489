"""What users of the bus may do, as deploy/nats/nats.conf says it.

Where a server knows its users by JWT their permissions stand in the JWTs; they are read from the
file that says them to the other servers, so that they are written down once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_TOKEN = re.compile(r'\s+|#[^\n]*|"((?:[^"\\]|\\.)*)"|([{}\[\]:,])|([^\s{}\[\]:,"#]+)')
_ENDS = frozenset("}]")


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects that a user may publish and subscribe to. None: all of them."""

    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None
    publish_denied: tuple[str, ...] = ()
    responses_max: int = 0
    """Answers to one request that are allowed wherever they go."""
    responses_within: timedelta = timedelta(0)


def read_permissions(config: str) -> dict[str, Permissions]:
    """The users of all accounts with their permissions; raises ValueError for what is no map."""
    tokens = _tokens(config)
    accounts = _map(tokens, end="").get("accounts", {})
    users = [user for account in accounts.values() for user in account.get("users", [])]
    return {user["user"]: _permissions(user.get("permissions", {})) for user in users}


def _permissions(said: dict[str, Any]) -> Permissions:
    publish, subscribe = said.get("publish", {}), said.get("subscribe", {})
    responses = said.get("allow_responses", {})
    return Permissions(
        publish=_subjects(publish["allow"]) if "allow" in publish else None,
        subscribe=_subjects(subscribe["allow"]) if "allow" in subscribe else None,
        publish_denied=_subjects(publish.get("deny", [])),
        responses_max=int(responses.get("max", 0)),
        responses_within=timedelta(seconds=int(responses.get("expires", "0s").removesuffix("s"))),
    )


def _subjects(said: str | list[str]) -> tuple[str, ...]:
    return (said,) if isinstance(said, str) else tuple(said)


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"not understood: {text[at : at + 40]!r}")
        at = found.end()
        quoted, mark, word = found.groups()
        if quoted is not None:
            yield quoted
        elif mark or word:
            yield mark or word


def _map(tokens: Iterator[str], end: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in tokens:
        if key == end:
            return found
        if key == ",":
            continue
        value = next(tokens)
        found[key] = _value(tokens, next(tokens) if value == ":" else value)
    if end:
        raise ValueError(f"{end!r} is missing")
    return found


def _list(tokens: Iterator[str]) -> list[Any]:
    found: list[Any] = []
    for first in tokens:
        if first == "]":
            return found
        if first != ",":
            found.append(_value(tokens, first))
    raise ValueError("']' is missing")


def _value(tokens: Iterator[str], first: str) -> Any:
    if first == "{":
        return _map(tokens, end="}")
    if first == "[":
        return _list(tokens)
    if first in _ENDS:
        raise ValueError(f"a value is missing before {first!r}")
    return first
