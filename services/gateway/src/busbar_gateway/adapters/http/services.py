"""What the HTTP endpoints need from the rest of the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from busbar_gateway.adapters.http.idempotency import Idempotency
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.domain.limits import Standing
from busbar_gateway.domain.routes import Caller, Route
from busbar_gateway.usecases.calls import ServesRequests


class Keys(Protocol):
    """Who is calling."""

    def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller of an Authorization header; raise Unauthenticated or Forbidden."""
        ...


class Routes(Protocol):
    """What may be called."""

    def visible(self, caller: Caller) -> Iterable[Route]:
        """Return the deployments that the caller may use."""
        ...

    def find(self, caller: Caller, name: str) -> Route:
        """Return one of them; raise UnknownDeployment when there is none, or not for the caller."""
        ...


def _always_ready() -> list[str]:
    return []


def _without_limits(tenant_id: str) -> Iterable[Standing]:  # noqa: ARG001
    return ()


@dataclass(frozen=True, slots=True)
class Services:
    """The gateway behind its HTTP edge."""

    serving: ServesRequests
    keys: Keys
    routes: Routes
    idempotency: Idempotency
    limits: HttpLimits = field(default_factory=HttpLimits)
    readiness: Callable[[], list[str]] = _always_ready
    """Why the gateway is not ready; empty when it is."""
    standings: Callable[[str], Iterable[Standing]] = _without_limits
    """What a tenant has left of its limits."""
