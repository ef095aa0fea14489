"""Requests and tokens a minute and requests in flight, for each tenant over all gateways.

A minute's limit is a bucket that holds what may be spent at once, at most the limit, and
fills at the limit's rate. It is kept as in GCRA (ITU-T I.371): by the time at which it will be
full, which spending moves on and time catches up with. Tokens are reserved by an estimate and
corrected to what was used.

Gateways do not ask each other. Each has the share of the limit that its demand is of
all gateways' demand, as all of them published it a second ago at most. Seen alike,
the shares sum to exactly 1 (`share_of`), with one request for each gateway as the
least. A bucket never jumps when its share grows, it only fills faster. So in T seconds
all gateways together let through at most limit * (1 + T/60) * (1 + NEWCOMER_RATIO) and
one request for each of them; while demand moves between them, up to a tenth more for
the second in which not all have heard of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from busbar_gateway.domain.policies import Policy

NEWCOMER_RATIO = 0.05
"""The part of a limit that is given out evenly, whatever the demand: who is new can start."""
DEMANDS_MAX = 1000
"""Tenants of which demand is published; beyond it those with least are left out."""
RETRY_AFTER_MAX_S = 60.0
_FIRST_OUTPUT_TOKENS = 256
"""Estimate of an answer before the tenant has had one, where the model may make more."""
_FRESH_WEIGHT = 0.5
"""Of the last second in a published rate."""
_IDLE_PER_MINUTE = 0.5
_OUTPUT_WEIGHT = 0.2
_SLOT_RETRY_AFTER_S = 1.0
_S_PER_MINUTE = 60.0
_EMPTY_S = _S_PER_MINUTE + 1e-6
"""How long an empty bucket takes to be full, and what rounding may add to that."""
_OWING_S = 2 * _S_PER_MINUTE
"""How long a bucket takes to be full that owes a minute's worth: no more is ever owed."""
_ALWAYS = float("-inf")
"""When a bucket was full that has not been counted by."""

Kind = Literal["requests", "tokens", "requests in flight"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What a tenant asks of one gateway, admitted or not."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """A limit is reached; `retry_after_s` is when it will not be, by what is known now."""

    kind: Kind
    limit: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a limit is left at this gateway, and when all of it will be."""

    kind: Kind
    limit: int
    remaining: int
    reset_s: float


def share_of(own: int, elsewhere: int, gateways: int) -> float:
    """The part of a limit that one of `gateways` gateways may give out."""
    if gateways <= 1:
        return 1.0
    total = own + elsewhere
    if not total:
        return 1 / gateways
    evenly = NEWCOMER_RATIO * total / gateways
    return (own + evenly) / (total * (1 + NEWCOMER_RATIO))


@dataclass(slots=True, eq=False)
class Meter:
    """One tenant with limits at this gateway."""

    requests_full_at: float = _ALWAYS
    tokens_full_at: float = _ALWAYS
    asked_at: float = 0.0
    """When a request was last held against the limits."""
    in_flight: int = 0
    typical_output_tokens: float = -1.0
    """Moving average of what its answers had; negative until there was one."""
    arrived: int = 0
    tokens_asked: int = 0
    in_flight_peak: int = 0
    requests_rate: float = 0.0
    tokens_rate: float = 0.0
    published: Demand = field(default_factory=Demand)
    request_share: float = 1.0
    token_share: float = 1.0
    slot_share: float = 1.0
    held_to: Policy | None = None
    """By whose limits the following are; None after the shares have changed."""
    s_per_request: float = 0.0
    """How much later the bucket is full for each request; 0 without a limit."""
    s_per_token: float = 0.0
    tokens_most: float = math.inf
    slots: float = math.inf

    def hold_to(self, policy: Policy) -> None:
        """Let in by the tenant's parts of these limits from now on; the buckets hold what they
        held when a request last came, or as much of it as they still can."""
        self.held_to, then = policy, self.asked_at
        s_each, self.s_per_request = self.s_per_request, 0.0
        if policy.requests_per_minute:
            most = max(1.0, policy.requests_per_minute * self.request_share)
            self.s_per_request = _S_PER_MINUTE / most
        self.requests_full_at = _same(self.requests_full_at, s_each, self.s_per_request, then)
        s_each, self.s_per_token, self.tokens_most = self.s_per_token, 0.0, math.inf
        if policy.tokens_per_minute:
            self.tokens_most = max(1.0, policy.tokens_per_minute * self.token_share)
            self.s_per_token = _S_PER_MINUTE / self.tokens_most
        self.tokens_full_at = _same(self.tokens_full_at, s_each, self.s_per_token, then)
        self.slots = math.inf
        if policy.max_in_flight:
            self.slots = max(1, int(policy.max_in_flight * self.slot_share))

    def share(self, requests: float, tokens: float, slots: float) -> None:
        """Have these parts of the limits from now on."""
        before = self.request_share, self.token_share, self.slot_share
        if (requests, tokens, slots) != before:
            self.request_share, self.token_share, self.slot_share = requests, tokens, slots
            self.held_to = None


def _same(full_at: float, s_each: float, s_each_now: float, then: float) -> float:
    """When a bucket is full that fills at another rate since `then`, when it held the same; one
    that gets a limit starts full."""
    if full_at <= _ALWAYS or not s_each or not s_each_now:
        return _ALWAYS
    held = (_S_PER_MINUTE - max(0.0, full_at - then)) / s_each
    full_in_s = _S_PER_MINUTE - held * s_each_now
    return then + min(_OWING_S, max(0.0, full_in_s))


@dataclass(slots=True, eq=False)
class Grant:
    """A request that was let in. Give it back with `Limits.settle`."""

    meter: Meter
    reserved_tokens: float


class Limits:
    """The meters of all tenants with limits. `now` is seconds on any clock that never goes back."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}
        self._elsewhere: dict[str, Mapping[str, Demand]] = {}
        self._heard: dict[str, float] = {}
        self._measured_at: float | None = None

    def estimate(self, tenant_id: str, input_tokens: int, output_tokens_max: int) -> int:
        """Tokens to reserve; `output_tokens_max` is 0 for requests that generate nothing."""
        if not output_tokens_max:
            return input_tokens
        meter = self._meters.get(tenant_id)
        if meter is None or meter.typical_output_tokens < 0:
            return input_tokens + min(output_tokens_max, _FIRST_OUTPUT_TOKENS)
        return input_tokens + min(output_tokens_max, int(meter.typical_output_tokens))

    def admit(self, tenant_id: str, policy: Policy, tokens: int, now: float) -> Grant | Refused:
        """Let a request in that may use `tokens`, or say which limit it meets."""
        meter = self._meters.get(tenant_id) or self._new_meter(tenant_id)
        meter.arrived += 1
        meter.tokens_asked += tokens
        in_flight = meter.in_flight
        if in_flight >= meter.in_flight_peak:
            meter.in_flight_peak = in_flight + 1
        if meter.held_to is not policy:
            meter.hold_to(policy)
        meter.asked_at = now
        if in_flight >= meter.slots:
            return Refused("requests in flight", policy.max_in_flight, _SLOT_RETRY_AFTER_S)
        latest = now + _EMPTY_S
        requests_full_at = tokens_full_at = now
        if meter.requests_full_at > now:
            requests_full_at = meter.requests_full_at
        requests_full_at += meter.s_per_request
        if requests_full_at > latest:
            return Refused("requests", policy.requests_per_minute, _wait_s(requests_full_at, now))
        if meter.tokens_full_at > now:
            tokens_full_at = meter.tokens_full_at
        reserved = tokens
        if tokens > meter.tokens_most:  # more than all at once: when all of it is there
            reserved = meter.tokens_most
        spends = reserved * meter.s_per_token
        if tokens_full_at + (spends or meter.s_per_token) > latest:
            tokens_full_at += max(spends, meter.s_per_token)
            return Refused("tokens", policy.tokens_per_minute, _wait_s(tokens_full_at, now))
        meter.requests_full_at, meter.tokens_full_at = requests_full_at, tokens_full_at + spends
        meter.in_flight = in_flight + 1
        return Grant(meter, reserved)

    @staticmethod
    def settle(grant: Grant, used: int, output: int) -> None:
        """A request has ended and used that many tokens, `output` of them made.

        What it used beyond its reservation is owed, up to one minute's worth: one
        answer that nobody foresaw does not shut a tenant out for longer.
        """
        meter = grant.meter
        meter.in_flight -= 1
        beyond = used - grant.reserved_tokens
        if beyond < 0:
            meter.tokens_full_at += beyond * meter.s_per_token
        elif beyond:
            full_at = max(meter.tokens_full_at, meter.asked_at)
            latest = max(full_at, meter.asked_at + _OWING_S)
            meter.tokens_full_at = min(latest, full_at + beyond * meter.s_per_token)
        if output:
            weight = _OUTPUT_WEIGHT if meter.typical_output_tokens >= 0 else 1.0
            meter.typical_output_tokens += weight * (output - meter.typical_output_tokens)

    def standings(self, tenant_id: str, policy: Policy, now: float) -> list[Standing]:
        """What is left of the minute's limits that the tenant has; nothing is spent by asking."""
        meter = self._meters.get(tenant_id) or self._new_meter(tenant_id)
        if meter.held_to is not policy:
            meter.hold_to(policy)
        found: list[Standing] = []
        limits: tuple[tuple[Kind, int, float, float], ...] = (
            ("requests", policy.requests_per_minute, meter.requests_full_at, meter.s_per_request),
            ("tokens", policy.tokens_per_minute, meter.tokens_full_at, meter.s_per_token),
        )
        for kind, limit, full_at, s_each in limits:
            if limit:
                reset_s = max(0.0, full_at - now)
                remaining = max(0, min(limit, int((_EMPTY_S - reset_s) / s_each)))
                found.append(Standing(kind, limit, remaining, reset_s))
        return found

    def share(self, tenant_id: str) -> float:
        """The part of the tenant's requests a minute that this gateway gives out now."""
        return (self._meters.get(tenant_id) or self._new_meter(tenant_id)).request_share

    def measure(self, policy_of: Callable[[str], Policy], now: float) -> dict[str, Demand]:
        """Return the demand since the last call, to be published; the shares follow from it."""
        elapsed_s = now - self._measured_at if self._measured_at is not None else 0.0
        self._measured_at = now
        for tenant_id, meter in list(self._meters.items()):
            if elapsed_s > 0:
                _measure(meter, elapsed_s)
            if not meter.published.requests_per_minute and not meter.in_flight:
                self._rest(tenant_id, meter, policy_of(tenant_id), now)
        asking = {t: m.published for t, m in self._meters.items() if m.published != Demand()}
        if len(asking) > DEMANDS_MAX:
            most = sorted(asking, key=lambda t: asking[t].requests_per_minute, reverse=True)
            asking = {tenant_id: asking[tenant_id] for tenant_id in most[:DEMANDS_MAX]}
        for tenant_id, meter in self._meters.items():
            self._share(tenant_id, meter)
        return asking

    def heard(self, gateway_id: str, demands: Mapping[str, Demand], now: float) -> None:
        """Another gateway has published its demand."""
        before = self._elsewhere.get(gateway_id, {})
        newcomer = gateway_id not in self._heard
        self._heard[gateway_id] = now
        self._elsewhere[gateway_id] = demands
        changed = self._meters.keys() if newcomer else {*before, *demands}
        for tenant_id in changed:
            if (meter := self._meters.get(tenant_id)) is not None:
                self._share(tenant_id, meter)

    def forget_silent(self, since: float) -> None:
        """Give the share of gateways that were not heard since then to the others."""
        silent = [gateway for gateway, heard in self._heard.items() if heard < since]
        for gateway_id in silent:
            self.gone(gateway_id)

    def gone(self, gateway_id: str) -> None:
        """A gateway has said goodbye."""
        if self._heard.pop(gateway_id, None) is None:
            return
        self._elsewhere.pop(gateway_id, None)
        for tenant_id, meter in self._meters.items():
            self._share(tenant_id, meter)

    def _new_meter(self, tenant_id: str) -> Meter:
        meter = self._meters[tenant_id] = Meter()
        self._share(tenant_id, meter)
        return meter

    def _share(self, tenant_id: str, meter: Meter) -> None:
        own, gateways = meter.published, 1 + len(self._heard)
        if gateways == 1:
            meter.share(1.0, 1.0, 1.0)
            return
        others = [d for said in self._elsewhere.values() if (d := said.get(tenant_id))]
        requests = sum(other.requests_per_minute for other in others)
        tokens = sum(other.tokens_per_minute for other in others)
        slots = sum(other.in_flight for other in others)
        meter.share(
            share_of(own.requests_per_minute, requests, gateways),
            share_of(own.tokens_per_minute, tokens, gateways),
            share_of(own.in_flight, slots, gateways),
        )

    def _rest(self, tenant_id: str, meter: Meter, policy: Policy, now: float) -> None:
        """Forget a tenant that asks for nothing once its buckets are full again."""
        meter.published = Demand()
        if all(standing.reset_s <= 0 for standing in self.standings(tenant_id, policy, now)):
            del self._meters[tenant_id]


def _measure(meter: Meter, elapsed_s: float) -> None:
    """Make rates of what was counted since the last time."""
    per_minute = _S_PER_MINUTE / elapsed_s
    meter.requests_rate += _FRESH_WEIGHT * (meter.arrived * per_minute - meter.requests_rate)
    meter.tokens_rate += _FRESH_WEIGHT * (meter.tokens_asked * per_minute - meter.tokens_rate)
    if meter.requests_rate < _IDLE_PER_MINUTE:
        meter.requests_rate = meter.tokens_rate = 0.0
    meter.published = Demand(
        round(meter.requests_rate),
        round(meter.tokens_rate),
        max(meter.in_flight_peak, meter.in_flight),
    )
    meter.arrived = meter.tokens_asked = 0
    meter.in_flight_peak = meter.in_flight


def _wait_s(full_at: float, now: float) -> float:
    """How long until a bucket holds so much that it would be full at `full_at` without it."""
    return min(RETRY_AFTER_MAX_S, max(0.0, full_at - now - _S_PER_MINUTE))
