"""Which endpoint serves an address."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from busbar_gateway.adapters.http.errors import NoAddress
from busbar_gateway.adapters.http.exchange import Endpoint

_PLACEHOLDER = re.compile(r"\\{(\w+)\\}")


@dataclass(frozen=True, slots=True)
class Address:
    """A path with {placeholders}, the methods it takes, and who serves it."""

    path: str
    endpoint: Endpoint
    method: str


class Router:
    """Finds the endpoint; of addresses that both match, the first."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        self._addresses = [
            (_pattern(address.path), _methods(address.method), address.endpoint)
            for address in addresses
        ]

    def find(self, method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
        """Return the endpoint and what the placeholders matched; raise NoAddress."""
        allowed: list[str] = []
        for pattern, methods, endpoint in self._addresses:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if method in methods:
                return endpoint, match.groupdict()
            allowed += methods
        raise NoAddress(allowed)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(_PLACEHOLDER.sub(r"(?P<\1>[^/]+)", re.escape(path)))


def _methods(method: str) -> tuple[str, ...]:
    return ("GET", "HEAD") if method == "GET" else (method,)
