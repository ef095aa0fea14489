"""Who may be dispatched now and who waits: one lane for each deployment.

Only as many requests go out as the ready slots take, so queues stand here, in
fair order, and not in the stream. Bands share a lane by fixed weights and borrow
what the others leave; inside a band tenants share by virtual counters (see
`fair_queue`). A full lane makes room for a tenant with little waiting at the cost
of the one with most, lower bands first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from busbar_gateway.domain.fair_queue import FairQueue, Flow
from busbar_gateway.domain.policies import Band

OVERCOMMIT_RATIO = 1.25
OVERCOMMIT_EXTRA = 1
TURNAROUND_S = 0.005
"""How long a slot stands empty when the next request is only sent once it is free."""
_TURNAROUND_RATIO_MAX = 0.025
"""Up to this part of a request's time the empty slot costs less than a queue in the stream."""
BAND_WEIGHTS = (16.0, 4.0, 1.0)
"""What the bands get of a lane when all of them have more to do than they get."""
STANDARD_HOLDBACK_RATIO, BATCH_HOLDBACK_RATIO = 0.05, 0.1
_SLOWER_WEIGHT, _FASTER_WEIGHT = 0.02, 0.3
"""An average that believes bad news slowly: a request that sat through a restart says nothing
about the next ones, and a wait that is overestimated refuses who could have been served."""
_TYPICAL_WEIGHT = 0.2
_FIRST_COST = 1.0
"""What a request is charged at first in a lane that has seen none end."""


def most_in_flight(part: float, service_s: float = 0.0) -> int:
    """Return how many requests a gateway may have in flight whose part of the slots this is.

    A little more than that, so that a slot that becomes free
    finds work waiting, unless requests take so long that the gap does not show:
    what waits in the stream has left the fair order. 0 when nothing is ready.
    `service_s` is what one request takes; 0 when that is not known.
    """
    if part <= 0:
        return 0
    most = math.ceil(part * OVERCOMMIT_RATIO) + OVERCOMMIT_EXTRA
    if not service_s:
        return most
    gap_ratio = TURNAROUND_S / service_s
    extra = 0 if gap_ratio <= _TURNAROUND_RATIO_MAX else math.ceil(part * gap_ratio)
    return min(most, math.ceil(part) + extra)


def holdback(band: Band, limit: int) -> int:
    """How many of `limit` slots this band and those below it leave to the bands above."""
    if band is Band.STANDARD:
        return int(limit * STANDARD_HOLDBACK_RATIO)
    if band is Band.BATCH and limit > 1:
        return math.ceil(limit * BATCH_HOLDBACK_RATIO)
    return 0


@dataclass(slots=True, eq=False)
class Ticket:
    """One request waiting or in flight."""

    tenant_id: str
    deadline: float
    """Seconds, on whatever clock the caller uses throughout."""
    arrived: float
    band: Band = Band.STANDARD
    weight: float = 1.0
    """Its tenant's share inside the band."""
    known_cost: float = 0.0
    """What is known before it runs: the weighted input tokens, where a model counts tokens."""
    started: float = field(default=0.0)
    charged: float = field(default=0.0)
    """What its tenant was charged for it so far, in the lane's unit."""
    flow: Flow[Ticket] | None = None
    """Its tenant in the lane, from when it first meets the lane."""
    turn: Any = None
    """What whoever waits for its turn waits for; the lane does not look at it."""


@dataclass(frozen=True, slots=True)
class Full:
    """Refused: too much is waiting. `retry_after_s` is when it may be better."""

    retry_after_s: float


@dataclass(slots=True, eq=False)
class _Band:
    """One band of a lane."""

    number: Band
    weight: float
    tenants: FairQueue[Ticket] = field(default_factory=FairQueue[Ticket])
    counter: float = 0.0
    in_flight: int = 0
    kept: int = 0
    """The lane's holdback from this band and those below."""


def _bands() -> tuple[_Band, ...]:
    return tuple(_Band(band, BAND_WEIGHTS[band]) for band in Band)


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
    _typical: float = 0.0
    bands: tuple[_Band, ...] = field(default_factory=_bands)
    _last: _Band | None = None
    _kept_of: int = 0
    """The limit of which the bands' holdbacks are."""

    def try_start(self, ticket: Ticket, now: float) -> bool:
        """Start at once when a slot is free and nobody waits."""
        if self.waiting or self.in_flight >= self.limit:
            return False
        band = self.bands[ticket.band]
        if not self._may_start(band):
            return False
        flow = _flow(band, ticket)
        self._lift(band)
        band.tenants.lift(flow)
        self._start(band, flow, ticket, now)
        return True

    def enqueue(self, ticket: Ticket, now: float) -> Full | Ticket | None:
        """Queue the ticket.

        Returns Full when it is refused, the ticket that it displaced when
        there was one, or None. `start_next` may find that it can start at once.
        """
        if self._hopeless(ticket, now):
            return self._full(ticket)
        displaced = None
        if self.waiting >= self.queue_max:
            displaced = self._make_room(ticket)
            if displaced is None:
                return self._full(ticket)
        band = self.bands[ticket.band]
        if not band.tenants.waiting:
            self._lift(band)
        band.tenants.push(_flow(band, ticket), ticket)
        self.waiting += 1
        return displaced

    def may_start(self, ticket: Ticket) -> bool:
        """Whether there may be a slot for it at once, newly queued: not behind others of its band,
        for which there was none either."""
        if self.in_flight >= self.limit:
            return False
        band = self.bands[ticket.band]
        return band.tenants.waiting == 1 and self._may_start(band)

    def start_next(self, now: float) -> Ticket | None:
        """Take the next ticket whose turn it is; None when none may start."""
        if not self.waiting or self.in_flight >= self.limit:
            return None
        band = self._next_band()
        if band is None:
            return None
        tenants = band.tenants
        flow = tenants.next_flow()
        if flow is None:
            return None
        ticket = tenants.pop(flow)
        self.waiting -= 1
        self._start(band, flow, ticket, now)
        return ticket

    def used(self, ticket: Ticket, cost: float) -> None:
        """Charge what a ticket in flight has cost so far where that is more than was predicted."""
        if cost > ticket.charged:
            band, difference = self.bands[ticket.band], cost - ticket.charged
            band.tenants.correct(_flow(band, ticket), difference)
            band.counter += difference / band.weight
            ticket.charged = cost

    def finish(self, ticket: Ticket, now: float, cost: float | None = None) -> None:
        """Give back the slot of a ticket that was started.

        `cost` is what it has cost in the end; None when that is not known, and
        then the prediction stands.
        """
        band = self.bands[ticket.band]
        flow = _flow(band, ticket)
        if cost is None:
            self._end(band, flow, ticket, ticket.charged)
        else:
            self._end(band, flow, ticket, cost)
            self._learn(flow, max(0.0, cost - ticket.known_cost))
        longer_s = now - ticket.started - self.service_s
        if self.service_s:
            longer_s *= _SLOWER_WEIGHT if longer_s > 0 else _FASTER_WEIGHT
        self.service_s += longer_s

    def release(self, ticket: Ticket) -> None:
        """Give back the slot of a ticket that was started but never served; it costs nothing."""
        band = self.bands[ticket.band]
        self._end(band, _flow(band, ticket), ticket, 0.0)

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a waiting ticket out of the queue; False when it does not wait."""
        band = self.bands[ticket.band]
        if not band.tenants.remove(_flow(band, ticket), ticket):
            return False
        self.waiting -= 1
        return True

    def expected_wait_s(self, ticket: Ticket) -> float:
        """How long this ticket, queued now, would wait, by the rate seen so far.

        Its place is among its tenant's own and the turns of the others until then.
        """
        if not self.limit:
            return 0.0
        band = self.bands[ticket.band]
        own = len(_flow(band, ticket).waiting)
        others = band.tenants.waiting_weight - (ticket.weight if own else 0.0)
        in_band = min((own + 1) * (1 + others / ticket.weight), band.tenants.waiting + 1)
        place = in_band
        if self.waiting > band.tenants.waiting:
            competing = sum(b.weight for b in self.bands if b.tenants.waiting and b is not band)
            place = min(in_band * (1 + competing / band.weight), self.waiting + 1)
        return place * self.service_s / self.limit

    def expired(self, now: float) -> list[Ticket]:
        """The waiting tickets whose deadline has passed."""
        return [t for t in self._tickets() if t.deadline <= now]

    def waiting_since_before(self, moment: float) -> list[Ticket]:
        """The waiting tickets that arrived before `moment`."""
        return [t for t in self._tickets() if t.arrived < moment]

    def _tickets(self) -> Iterator[Ticket]:
        for band in self.bands:
            for flow in band.tenants.flows_waiting():
                yield from flow.waiting

    def _hopeless(self, ticket: Ticket, now: float) -> bool:
        """Whether this ticket's deadline would pass before its turn."""
        if not self.limit:
            return False
        left_s = ticket.deadline - now
        if (self.waiting + 1) * self.service_s <= left_s * self.limit:
            return False  # not even behind everybody
        return self.expected_wait_s(ticket) > left_s

    def _full(self, ticket: Ticket) -> Full:
        return Full(_bounded_retry_s(self.expected_wait_s(ticket)))

    def _may_start(self, band: _Band) -> bool:
        """Whether the holdback of the bands above leaves this one a slot."""
        if self._kept_of != self.limit:
            self._kept_of = self.limit
            for one in self.bands:
                one.kept = holdback(one.number, self.limit)
        most = self.limit - band.kept
        if self.in_flight < most or not band.kept:
            return True
        at_most_this = self.in_flight
        for above in self.bands[: band.number]:
            at_most_this -= above.in_flight
        return at_most_this < most

    def _next_band(self) -> _Band | None:
        chosen = None
        for band in self.bands:
            if not band.tenants.waiting or not self._may_start(band):
                continue
            if chosen is None or band.counter < chosen.counter:
                chosen = band
        return chosen

    def _lift(self, band: _Band) -> None:
        """A band that did nothing for a while has earned nothing by that."""
        lowest = self._next_band() if self.waiting else self._last
        if lowest is not None and lowest.counter > band.counter:
            band.counter = lowest.counter

    def _start(self, band: _Band, flow: Flow[Ticket], ticket: Ticket, now: float) -> None:
        cost = ticket.known_cost + (flow.typical or self._typical) or _FIRST_COST
        band.tenants.serve(flow, cost)
        ticket.started, ticket.charged = now, cost
        band.counter += cost / band.weight
        band.in_flight += 1
        self._last = band
        self.in_flight += 1

    def _learn(self, flow: Flow[Ticket], beyond_known: float) -> None:
        beyond_usual = beyond_known - flow.typical
        flow.typical += _TYPICAL_WEIGHT * beyond_usual if flow.typical else beyond_usual
        beyond_usual = beyond_known - self._typical
        self._typical += _TYPICAL_WEIGHT * beyond_usual if self._typical else beyond_usual

    def _end(self, band: _Band, flow: Flow[Ticket], ticket: Ticket, cost: float) -> None:
        difference, ticket.charged = cost - ticket.charged, cost
        band.counter += difference / band.weight
        band.tenants.settle(flow, difference)
        band.in_flight -= 1
        self.in_flight -= 1

    def _make_room(self, ticket: Ticket) -> Ticket | None:
        """Displace the newest of whoever has most waiting, below this band or fairly in it."""
        for band in reversed(self.bands[ticket.band :]):
            if not band.tenants.waiting:
                continue
            longest = max(band.tenants.flows_waiting(), key=lambda flow: len(flow.waiting))
            mine = len(_flow(band, ticket).waiting) if band.number == ticket.band else -1
            if mine >= 0 and len(longest.waiting) <= mine + 1:
                return None
            self.waiting -= 1
            return band.tenants.pop_newest(longest)
        return None


def _flow(band: _Band, ticket: Ticket) -> Flow[Ticket]:
    """The ticket's tenant; what is in flight keeps the one that it was charged to."""
    flow = ticket.flow
    if flow is None:
        flow = ticket.flow = band.tenants.flow(ticket.tenant_id, ticket.weight)
    return flow


def _bounded_retry_s(wait_s: float) -> float:
    return min(30.0, max(0.5, wait_s))
