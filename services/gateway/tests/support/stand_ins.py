"""Who may call what at an edge under test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from busbar_gateway.domain.failures import Forbidden, Unauthenticated, UnknownDeployment
from busbar_gateway.domain.routes import Caller, Route

KEY = "bb_the-key-of-the-tests"
NARROW_KEY = "bb_another-key-of-the-tenant"
"""May use one model."""
OTHER_KEY = "bb_the-key-of-another-tenant"


class StandInKeys:
    def authenticate(self, authorization: str | None) -> Caller:
        if authorization == f"Bearer {NARROW_KEY}":
            return Caller("acme", "key-2", frozenset({"simple"}))
        if authorization == f"Bearer {OTHER_KEY}":
            return Caller("globex", "key-3")
        if authorization != f"Bearer {KEY}":
            raise Unauthenticated("this API key is unknown or was revoked")
        return Caller("acme", "key-1")


@dataclass
class StandInRoutes:
    routes: Sequence[Route]
    names: frozenset[str]

    def visible(self, caller: Caller) -> list[Route]:
        return [r for r in self.routes if r.open_to(caller) and r.deployment in self.names]

    def find(self, caller: Caller, name: str) -> Route:
        for route in self.visible(caller):
            if route.deployment == name:
                return route
        raise UnknownDeployment(f"there is no model {name[:64]!r}")


@dataclass
class StandInLeave:
    """Says which caller may have which model's answers."""

    routes: StandInRoutes
    suspended: str = ""

    def check(self, caller: Caller, model: str) -> None:
        self.routes.find(caller, model)
        if self.suspended:
            raise Forbidden(self.suspended)
