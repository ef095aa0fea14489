"""Who may be dispatched now and who waits: one lane for each deployment.

Only as many requests go out as the ready slots take, so queues stand here, in
fair order, and not in the stream. Inside a lane tenants take turns; a full lane
makes room for a tenant with little waiting at the cost of the one with most.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

OVERCOMMIT_RATIO = 1.25
OVERCOMMIT_EXTRA = 1
_SLOWER_WEIGHT, _FASTER_WEIGHT = 0.02, 0.3
"""An average that believes bad news slowly: a request that sat through a restart says nothing
about the next ones, and a wait that is overestimated refuses who could have been served."""


def share_of_slots(ready_slots: int, gateways: int) -> int:
    """Return how many requests one of `gateways` gateways may have in flight.

    A little more than its part of the slots, so that a slot that becomes free
    finds work waiting; 0 when nothing is ready.
    """
    if ready_slots <= 0:
        return 0
    part = ready_slots / max(1, gateways)
    return math.ceil(part * OVERCOMMIT_RATIO) + OVERCOMMIT_EXTRA


@dataclass(slots=True, eq=False)
class Ticket:
    """One request waiting or in flight."""

    tenant_id: str
    deadline: float
    """Seconds, on whatever clock the caller uses throughout."""
    arrived: float
    started: float = field(default=0.0)


@dataclass(frozen=True, slots=True)
class Full:
    """Refused: too much is waiting. `retry_after_s` is when it may be better."""

    retry_after_s: float


@dataclass(slots=True, eq=False)
class Lane:
    """Admission of one deployment at one gateway."""

    queue_max: int
    limit: int = 0
    """Most requests in flight; 0 while nothing is ready."""
    in_flight: int = 0
    waiting: int = 0
    service_s: float = 0.0
    """Moving average of the time that a request in flight takes; 0 until one finished."""
    _turns: OrderedDict[str, deque[Ticket]] = field(default_factory=OrderedDict[str, deque[Ticket]])

    def try_start(self, ticket: Ticket, now: float) -> bool:
        """Start at once when a slot is free and nobody waits."""
        if self.waiting or self.in_flight >= self.limit:
            return False
        self._start(ticket, now)
        return True

    def enqueue(self, ticket: Ticket, now: float) -> Full | Ticket | None:
        """Queue the ticket.

        Returns Full when it is refused, the ticket that it displaced when
        there was one, or None.
        """
        wait_s = self.expected_wait_s()
        if self.limit and wait_s > ticket.deadline - now:
            return Full(self._retry_after_s())
        displaced = None
        if self.waiting >= self.queue_max:
            displaced = self._make_room(ticket.tenant_id)
            if displaced is None:
                return Full(self._retry_after_s())
        self._turns.setdefault(ticket.tenant_id, deque()).append(ticket)
        self.waiting += 1
        return displaced

    def start_next(self, now: float) -> Ticket | None:
        """Take the next ticket whose turn it is; None when none waits or no slot is free."""
        if not self.waiting or self.in_flight >= self.limit:
            return None
        tenant_id, tickets = next(iter(self._turns.items()))
        ticket = tickets.popleft()
        self.waiting -= 1
        if tickets:
            self._turns.move_to_end(tenant_id)
        else:
            del self._turns[tenant_id]
        self._start(ticket, now)
        return ticket

    def finish(self, ticket: Ticket, now: float) -> None:
        """Give back the slot of a ticket that was started."""
        self.in_flight -= 1
        took_s = max(0.0, now - ticket.started)
        if self.service_s:
            weight = _SLOWER_WEIGHT if took_s > self.service_s else _FASTER_WEIGHT
            self.service_s += weight * (took_s - self.service_s)
        else:
            self.service_s = took_s

    def release(self) -> None:
        """Give back the slot of a ticket that was started but never served."""
        self.in_flight -= 1

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a waiting ticket out of the queue; False when it does not wait."""
        tickets = self._turns.get(ticket.tenant_id)
        if tickets is None or ticket not in tickets:
            return False
        tickets.remove(ticket)
        self.waiting -= 1
        if not tickets:
            del self._turns[ticket.tenant_id]
        return True

    def expected_wait_s(self) -> float:
        """How long a ticket queued now would wait, by the rate seen so far."""
        if not self.limit:
            return 0.0
        return (self.waiting + 1) * self.service_s / self.limit

    def expired(self, now: float) -> list[Ticket]:
        """The waiting tickets whose deadline has passed."""
        return [t for tickets in self._turns.values() for t in tickets if t.deadline <= now]

    def waiting_since_before(self, moment: float) -> list[Ticket]:
        """The waiting tickets that arrived before `moment`."""
        return [t for tickets in self._turns.values() for t in tickets if t.arrived < moment]

    def _start(self, ticket: Ticket, now: float) -> None:
        ticket.started = now
        self.in_flight += 1

    def _make_room(self, tenant_id: str) -> Ticket | None:
        longest = max(self._turns, key=lambda tenant: len(self._turns[tenant]), default=None)
        if longest is None:
            return None
        mine = len(self._turns.get(tenant_id, ()))
        if len(self._turns[longest]) <= mine + 1:
            return None
        self.waiting -= 1
        return self._turns[longest].pop()

    def _retry_after_s(self) -> float:
        return min(30.0, max(0.5, self.expected_wait_s()))
