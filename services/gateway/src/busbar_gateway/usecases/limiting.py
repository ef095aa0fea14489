"""Holding every request against its tenant's limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

from busbar_gateway.domain.costs import guessed_input_tokens
from busbar_gateway.domain.failures import Forbidden, RateLimited
from busbar_gateway.domain.limits import Demand, Grant, Limits, Refused, Standing
from busbar_gateway.domain.policies import Policy
from busbar_gateway.usecases.calls import InferenceCall


class Limiting:
    """The limits of all tenants at this gateway."""

    def __init__(self, policy: Callable[[str], Policy]) -> None:
        self._policy = policy
        self._limits = Limits()

    def enter(self, call: InferenceCall) -> Grant | None:
        """Let the request in; the caller must `leave` with the grant.

        None for tenants without limits. Raises Forbidden for a suspended tenant
        and RateLimited when a limit is reached.
        """
        tenant_id = call.caller.tenant_id
        policy = self._policy(tenant_id)
        _check_served(policy)
        if not policy.limited:
            return None
        tokens = self._estimate(tenant_id, call) if policy.tokens_per_minute else 0
        found = self._limits.admit(tenant_id, policy, tokens, monotonic())
        if isinstance(found, Refused):
            raise _refusal(found)
        return found

    def check_served(self, tenant_id: str) -> None:
        """Raise Forbidden for a suspended tenant."""
        _check_served(self._policy(tenant_id))

    def leave(self, grant: Grant, input_tokens: int, output_tokens: int) -> None:
        """The request has ended, having used that."""
        self._limits.settle(grant, input_tokens + output_tokens, output_tokens)

    def standings(self, tenant_id: str) -> list[Standing]:
        """What the tenant has left of its limits here; empty when it has none."""
        policy = self._policy(tenant_id)
        return self._limits.standings(tenant_id, policy, monotonic()) if policy.limited else []

    def measure(self) -> dict[str, Demand]:
        """Demand by tenant since the last call, to be published once a second."""
        return self._limits.measure(self._policy, monotonic())

    def heard(self, gateway_id: str, demands: Mapping[str, Demand], now: float) -> None:
        """Another gateway has published its demand."""
        self._limits.heard(gateway_id, demands, now)

    def gone(self, gateway_id: str) -> None:
        """Another gateway has stopped."""
        self._limits.gone(gateway_id)

    def forget_silent(self, since: float) -> None:
        """Give the share of gateways that were not heard since then to the others."""
        self._limits.forget_silent(since)

    def _estimate(self, tenant_id: str, call: InferenceCall) -> int:
        manifest = call.route.manifest
        guessed = guessed_input_tokens(manifest, len(call.payload))
        if manifest.task != "chat":
            return guessed
        most = call.output_tokens_max or manifest.max_output_tokens
        return self._limits.estimate(tenant_id, guessed, most)


def _check_served(policy: Policy) -> None:
    if policy.suspended_reason:
        raise Forbidden(f"this account is suspended: {policy.suspended_reason}")


def _refusal(refused: Refused) -> RateLimited:
    unit = "at a time" if refused.kind == "requests in flight" else "a minute"
    counted = "tokens" if refused.kind == "tokens" else "requests"
    return RateLimited(
        f"rate limit reached: this account's limit is {refused.limit} {counted} {unit};"
        f" try again in {refused.retry_after_s:.1f} s",
        refused.retry_after_s,
    )
