"""Fairness as customers meet it: clients that send the next request when they have the answer.

A lane in virtual time. A tenant with few clients cannot always have one waiting, so
what it can get at most is what it gets when it is always served first.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from busbar_gateway.domain.admission import Lane, Ticket

SLOTS, FEW, MANY = 3, 2, 64
LASTS_S = (0.22, 0.38)
THINKS_S = 0.005
RUN_S = 300.0
_NEVER = 1e9


class Turns(Protocol):
    """Who is next."""

    def arrive(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Queue one; returns those that start."""
        ...

    def end(self, ticket: Ticket, now: float, cost: float) -> list[Ticket]:
        """One has ended; returns those that start."""
        ...


class InLane:
    """As the gateway does it."""

    def __init__(self) -> None:
        self.lane = Lane(queue_max=2 * MANY, limit=SLOTS)

    def arrive(self, ticket: Ticket, now: float) -> list[Ticket]:
        if self.lane.try_start(ticket, now):
            return [ticket]
        assert self.lane.enqueue(ticket, now) is None
        return self._started(now)

    def end(self, ticket: Ticket, now: float, cost: float) -> list[Ticket]:
        self.lane.finish(ticket, now, cost)
        return self._started(now)

    def _started(self, now: float) -> list[Ticket]:
        return list(iter(lambda: self.lane.start_next(now), None))


@dataclass
class FewFirst:
    """The tenant with few clients is always served first: it cannot get more without idle slots."""

    free: int = SLOTS
    waiting: dict[str, deque[Ticket]] = field(
        default_factory=lambda: {"few": deque[Ticket](), "many": deque[Ticket]()}
    )

    def arrive(self, ticket: Ticket, now: float) -> list[Ticket]:
        del now
        self.waiting[ticket.tenant_id].append(ticket)
        return self._started()

    def end(self, ticket: Ticket, now: float, cost: float) -> list[Ticket]:
        del ticket, now, cost
        self.free += 1
        return self._started()

    def _started(self) -> list[Ticket]:
        started: list[Ticket] = []
        for queue in self.waiting.values():
            while queue and self.free:
                self.free -= 1
                started.append(queue.popleft())
        return started


def share_of_few(turns: Turns, *, many_last: float) -> float:
    """What part of the slots' time the tenant with few clients gets; the other's requests last
    `many_last` times as long as its own."""
    draws, order = random.Random(1), itertools.count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    busy_s: Counter[str] = Counter()

    def at(time: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (time, next(order), what))

    def send(tenant: str, now: float) -> None:
        begin(turns.arrive(Ticket(tenant, _NEVER, now), now), now)

    def begin(started: list[Ticket], now: float) -> None:
        for ticket in started:
            lasts_s = draws.uniform(*LASTS_S) * (many_last if ticket.tenant_id == "many" else 1)
            at(now + lasts_s, lambda now, t=ticket, s=lasts_s: end(t, s, now))

    def end(ticket: Ticket, lasted_s: float, now: float) -> None:
        busy_s[ticket.tenant_id] += lasted_s  # pyright: ignore[reportArgumentType]
        begin(turns.end(ticket, now, lasted_s * 1000), now)
        thinks_s = draws.uniform(0, 2 * THINKS_S)
        at(now + thinks_s, lambda now: send(ticket.tenant_id, now))

    for tenant in ["few"] * FEW + ["many"] * MANY:
        at(0.0, lambda now, t=tenant: send(t, now))
    while events[0][0] < RUN_S:
        time, _, what = heapq.heappop(events)
        what(time)
    return busy_s["few"] / busy_s.total()


def test_two_clients_get_their_half_next_to_sixty_four_with_shorter_requests() -> None:
    assert share_of_few(InLane(), many_last=0.5) == pytest.approx(0.5, abs=0.01)


def test_two_clients_that_cannot_use_half_get_nearly_what_they_can() -> None:
    at_most = share_of_few(FewFirst(), many_last=1.0)

    assert at_most < 0.5
    assert share_of_few(InLane(), many_last=1.0) >= 0.94 * at_most
