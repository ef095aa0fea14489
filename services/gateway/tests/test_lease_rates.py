"""A lease lasts while it is renewed, and is as large as its tenant spends fast."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from busbar_gateway.domain.credit import (
    ESTIMATES_AHEAD,
    HORIZON_S,
    SPARE_FACTOR,
    Ask,
    Granted,
    Wallet,
    apply_grant,
    plan_ask,
)
from hypothesis import given, settings
from hypothesis import strategies as st

REQUEST_NANOS = 1_000
TICK_S = 1.0
"""How often a gateway measures, and asks while nobody waits."""
LEASE_S = 30.0


@dataclass
class Spender:
    """A tenant that always has something to ask, at a gateway in virtual time."""

    answers_after_s: float
    """How long billing takes to lend what it was asked for."""
    wallet: Wallet = field(default_factory=lambda: Wallet("t"))
    now: float = 100.0
    served: int = 0
    waited: int = 0
    lent_nanos: int = 0
    _due: float = 0.0
    """Requests that should have been sent, and were not: less than one."""
    _asks: deque[tuple[float, Ask]] = field(default_factory=deque[tuple[float, Ask]])
    """Under way, with when they were sent."""

    def spend(self, seconds: float, per_s: float) -> None:
        """Send so many requests a second, evenly."""
        until = self.now + seconds
        next_tick = self.now
        step_s = 1 / max(per_s, 20)
        while self.now < until:
            self._hear()
            if self.now >= next_tick:
                next_tick += TICK_S
                self.wallet.measure(self.now)
                self._ask([])
            self._due += per_s * step_s
            if self._due >= 1:
                self._due -= 1
                self._request()
            self.now += step_s

    def _request(self) -> None:
        claim = self.wallet.reserve(REQUEST_NANOS, self.now, billing_away=False)
        if claim is None:
            self.waited += 1
            self._ask([REQUEST_NANOS])
            return
        self.served += 1
        self.wallet.spend(claim, REQUEST_NANOS)

    def _ask(self, wanted: list[int]) -> None:
        if self._asks:
            return
        ask = plan_ask(self.wallet, wanted, self.now, self.now)
        if ask is not None:
            self._asks.append((self.now, ask))

    def _hear(self) -> None:
        while self._asks and self.now >= self._asks[0][0] + self.answers_after_s:
            asked_at, ask = self._asks.popleft()
            self.lent_nanos += ask.want_nanos
            granted = Granted("t", b"lease", self.lent_nanos, ttl_s=LEASE_S)
            apply_grant(self.wallet, ask, granted, asked_at, self.now)

    @property
    def free_nanos(self) -> int:
        """What is in the lease for requests to come."""
        return self.wallet.lease.free_nanos if self.wallet.lease is not None else 0


@st.composite
def steady(draw: st.DrawFn) -> tuple[float, float]:
    """How long billing takes, and a rate whose first slice lasts for a measurement and that."""
    answers_after_s = draw(st.floats(0.0, 2.0))
    most_per_s = ESTIMATES_AHEAD / (2 * TICK_S + answers_after_s)
    return answers_after_s, draw(st.floats(0.5, most_per_s))


@settings(max_examples=30)
@given(steady())
def test_who_spends_steadily_waits_for_the_first_slice_only(case: tuple[float, float]) -> None:
    answers_after_s, per_s = case
    spender = Spender(answers_after_s)
    spender.spend(answers_after_s + 3 / per_s, per_s)
    waited = spender.waited
    spender.spend(2.5 * LEASE_S, per_s)

    assert spender.waited == waited
    assert spender.served >= 2 * LEASE_S * per_s


def test_a_slice_follows_the_rate_of_spending_up_and_down() -> None:
    spender = Spender(0.5)
    targets = list[int]()
    for per_s in (10, 100, 10):
        spender.spend(15, per_s)
        targets.append(spender.wallet.target_nanos)
    slow, fast, slow_again = targets
    spender.spend(LEASE_S, 10)

    assert slow == int(HORIZON_S) * 10 * REQUEST_NANOS
    assert 9 * slow <= fast <= 11 * slow
    assert slow_again <= 1.1 * slow
    assert spender.free_nanos <= SPARE_FACTOR * slow_again
    assert spender.waited <= 6  # for the first slice: the jump found enough


def test_ten_times_the_rate_is_lent_ten_times_as_much() -> None:
    slow, fast = Spender(0.1), Spender(0.1)
    slow.spend(2 * LEASE_S, 10)
    fast.spend(2 * LEASE_S, 100)

    assert 8 * slow.free_nanos <= fast.free_nanos <= 12 * slow.free_nanos
