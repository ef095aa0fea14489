"""CPU that admission and limits take of one request, in this process, without any I/O.

With 10,000 tenants known and 500 of them active: holding against the limits,
queueing or starting in fair order, ending and correcting. Budget: 12 us.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from busbar_gateway.domain.admission import Lane, Ticket, holdback
from busbar_gateway.domain.limits import Grant, Limits
from busbar_gateway.domain.policies import Band, Policy

TENANTS, ACTIVE, REQUESTS = 10_000, 500, 40_000
SLOTS, QUEUE_MAX = 32, 2 * ACTIVE
_NEVER = 1e9
_POLICY = Policy(requests_per_minute=10**9, tokens_per_minute=10**12, max_in_flight=10**6)


@dataclass
class Load:
    """A lane and its limits, and what is in them."""

    most_running: int
    lane: Lane = field(default_factory=lambda: Lane(QUEUE_MAX, limit=SLOTS))
    limits: Limits = field(default_factory=Limits)
    grants: dict[Ticket, Grant] = field(default_factory=dict[Ticket, Grant])
    running: deque[Ticket] = field(default_factory=deque[Ticket])

    def one(self, tenant: str, now: float) -> None:
        """A request arrives, and one ends when there are enough."""
        self.arrive(tenant, now)
        if len(self.running) >= self.most_running:
            self.end(now)

    def arrive(self, tenant: str, now: float) -> None:
        grant = self.limits.admit(tenant, _POLICY, 120, now)
        assert isinstance(grant, Grant), "the limits of this measurement are never met"
        ticket = Ticket(tenant, _NEVER, now, Band.STANDARD, 1.0, 100.0)
        self.grants[ticket] = grant
        if self.lane.try_start(ticket, now):
            self.running.append(ticket)
            return
        self.lane.enqueue(ticket, now)
        while (started := self.lane.start_next(now)) is not None:
            self.running.append(started)

    def end(self, now: float) -> None:
        ticket = self.running.popleft()
        self.lane.finish(ticket, now, 250.0)
        self.limits.settle(self.grants.pop(ticket), 150, 50)


def admission_us(*, backlogged: bool) -> float:
    """CPU microseconds for one request, when slots are free or when every tenant always waits."""
    draws = random.Random(1)
    load = Load(SLOTS - holdback(Band.STANDARD, SLOTS) if backlogged else SLOTS // 2)
    for number in range(TENANTS):
        load.arrive(f"tenant-{number}", 0.0)
        load.end(0.0)
    tenants = [f"tenant-{number}" for number in range(ACTIVE)]
    for tenant in tenants if backlogged else []:
        load.arrive(tenant, 0.0)
    arrivals = [draws.choice(tenants) for _ in range(REQUESTS)]
    began = time.process_time_ns()
    for number, tenant in enumerate(arrivals):
        load.one(tenant, 1.0 + number * 1e-4)
    took_us = (time.process_time_ns() - began) / 1000
    assert (load.lane.waiting > 0) == backlogged, "this measures another case than it says"
    return took_us / REQUESTS


def report() -> list[dict[str, Any]]:
    """What `./just bench` prints of this."""
    return [
        {"step": "admission and limits, slots free", "cpu_us": admission_us(backlogged=False)},
        {"step": "admission and limits, all tenants wait", "cpu_us": admission_us(backlogged=True)},
    ]


if __name__ == "__main__":
    for line in report():
        print(f"{line['step']}: {line['cpu_us']:.1f} us CPU a request")  # noqa: T201
