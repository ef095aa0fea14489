"""Waiting for a turn: the lanes of all deployments, and the requests that wait in them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from busbar_gateway.domain.admission import Full, Lane, Ticket, most_in_flight
from busbar_gateway.domain.costs import known_cost
from busbar_gateway.domain.failures import (
    DeadlineExceeded,
    ModelUnready,
    RateLimited,
    Unavailable,
)
from busbar_gateway.domain.policies import Policy
from busbar_gateway.domain.routes import Route
from busbar_gateway.domain.sharing import PART_LEAST, Peer, allot
from busbar_gateway.domain.waking import Waking, patience_s
from busbar_gateway.usecases.calls import InferenceCall

_SHARED_AGAIN_AFTER_S = 0.5
"""How often the slots are shared out anew, for what the gateways ask for changes."""


@dataclass(slots=True, eq=False)
class _Admission:
    """A lane and those who wait in it."""

    lane: Lane
    ready_at: float | None = None
    """When the deployment was last ready; None when it never was since this gateway started."""
    unready_count: int = 0
    """Requests that found nothing ready."""
    waking: Waking = field(default_factory=Waking)
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    """Which part of each region's slots this gateway may fill."""
    part: float = 0.0
    """All the slots that it may fill."""
    shared_at: float = 0.0
    """When they were last worked out."""


class Admissions:
    """Admission of every deployment at this gateway."""

    def __init__(
        self,
        *,
        queue_max: int,
        unready_grace_s: float,
        remembered_ready_s: float,
        current_route: Callable[[str], Route | None],
        region: str,
        others: Callable[[str], Sequence[Peer]],
        policy: Callable[[str], Policy],
    ) -> None:
        self._queue_max = queue_max
        self._unready_grace_s = unready_grace_s
        self._remembered_ready_s = remembered_ready_s
        self._current_route = current_route
        self._region = region
        self._others = others
        self._policy = policy
        self._admissions: dict[str, _Admission] = {}
        self._on_asked: Callable[[], None] = lambda: None

    def on_asked(self, listener: Callable[[], None]) -> None:
        """Call `listener` when a deployment that sleeps is asked for, and nobody had lately."""
        self._on_asked = listener

    def unready_count(self, deployment: str) -> int:
        """Requests since the start that found no ready replica."""
        admission = self._admissions.get(deployment)
        return admission.unready_count if admission else 0

    def lane(self, deployment: str) -> Lane | None:
        """The lane of a deployment, if it had traffic."""
        admission = self._admissions.get(deployment)
        return admission.lane if admission else None

    def shares(self, deployment: str) -> Mapping[str, float]:
        """Which part of a deployment's slots in each region this gateway may fill, 0 to 1."""
        admission = self._admissions.get(deployment)
        return admission.shares if admission else {}

    def deployments(self) -> list[str]:
        """The deployments that have a lane."""
        return list(self._admissions)

    def enter(self, call: InferenceCall) -> Ticket:
        """Let the request in, or queue it: then the ticket has a `turn` to be awaited.

        The caller must `leave` with the ticket, or `give_up` when it stops to wait. This and the
        turn raise RateLimited, Unavailable or DeadlineExceeded.
        """
        now = monotonic()
        admission = self._admissions.get(call.route.deployment)
        if admission is None:
            admission = self._opened(call.route, now)
        ticket = self._ticket(call, now)
        lane = admission.lane
        if lane.try_start(ticket, now):
            return ticket
        if not lane.limit:
            self._find_unready(admission, call.route, ticket, now)
        displaced = lane.enqueue(ticket, now)
        if displaced is not None:
            self._displace(admission, call.route, displaced, now)
        ticket.turn = asyncio.get_running_loop().create_future()
        if lane.may_start(ticket):  # others may be held back from a slot that it may take
            self._pump(admission, now)
        return ticket

    def give_up(self, deployment: str, ticket: Ticket) -> None:
        """Nobody waits for this turn any more; it may have come meanwhile."""
        admission, turn = self._admissions.get(deployment), ticket.turn
        if admission is None:
            return
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            admission.lane.release(ticket)
            self._pump(admission, ticket.started)
        else:
            admission.lane.withdraw(ticket)

    def used(self, deployment: str, ticket: Ticket, cost: float) -> None:
        """Charge the tenant's share with what its request has cost so far."""
        self._admissions[deployment].lane.used(ticket, cost)

    def leave(self, deployment: str, ticket: Ticket, cost: float | None) -> None:
        """Give the slot back and let the next one in; `cost` as in `Lane.finish`."""
        admission = self._admissions[deployment]
        lane, now = admission.lane, monotonic()
        lane.finish(ticket, now, cost)
        following = lane.start_next(now) if lane.waiting else None
        if following is None:
            return
        turn = following.turn
        if turn is None or turn.done():
            lane.release(following)
        else:
            turn.set_result(None)
            if following.band is ticket.band:  # as it was before, when nobody else could start
                return
        self._pump(admission, now)

    def capacity_changed(self) -> None:
        """Apply new routes or a new number of gateways to every lane."""
        now = monotonic()
        for deployment, admission in list(self._admissions.items()):
            route = self._current_route(deployment)
            self._apply(admission, route, now)
            if route is None and not admission.lane.in_flight and not admission.lane.waiting:
                del self._admissions[deployment]

    def expire(self, now: float) -> None:
        """Fail those who waited past their deadline, or too long for a replica."""
        for deployment, admission in self._admissions.items():
            lane = admission.lane
            route = self._current_route(deployment)
            if now - admission.shared_at >= _SHARED_AGAIN_AFTER_S:
                self._share(admission, route, now)
            self._resize(admission)
            if not lane.waiting:
                continue
            self._pump(admission, now)
            for ticket in lane.expired(now):
                self._fail(admission, ticket, _expired(admission, route, now))
            if not lane.limit:
                self._fail_unready(admission, route, now)

    def _ticket(self, call: InferenceCall, now: float) -> Ticket:
        tenant_id = call.caller.tenant_id
        policy = self._policy(tenant_id)
        known = known_cost(call.route.manifest, len(call.payload))
        return Ticket(tenant_id, call.deadline, now, policy.band, policy.weight, known)

    def _fail_unready(self, admission: _Admission, route: Route | None, now: float) -> None:
        if route is not None and route.wakes_within_s:
            wait_began = now - patience_s(route.wakes_within_s)
            for ticket in admission.lane.waiting_since_before(wait_began):
                self._fail(admission, ticket, _asleep(admission, route, now))
            return
        grace_began = now - self._unready_grace_s
        if admission.ready_at is not None and admission.ready_at > grace_began:
            return
        for ticket in admission.lane.waiting_since_before(grace_began):
            self._fail(admission, ticket, _unready(route))

    def _opened(self, route: Route, now: float) -> _Admission:
        """The admission of a deployment that had none."""
        admission = self._admissions[route.deployment] = _Admission(Lane(self._queue_max))
        self._apply(admission, route, now)
        return admission

    def _apply(self, admission: _Admission, route: Route | None, now: float) -> None:
        ready_slots = route.ready_slots if route else 0
        if admission.lane.limit or ready_slots:
            admission.ready_at = now
        if ready_slots:
            admission.waking = Waking()
        self._share(admission, route, now)
        self._resize(admission)
        self._pump(admission, now)

    def _share(self, admission: _Admission, route: Route | None, now: float) -> None:
        """Work out which slots are for this gateway."""
        admission.shared_at = now
        if route is None:
            admission.shares, admission.part = {}, 0.0
            return
        slots, lane = route.slots_by_region(), admission.lane
        own = Peer(self._region, lane.in_flight + lane.waiting)
        parts = allot(slots, own, self._others(route.deployment))
        admission.shares = {region: part / slots[region] for region, part in parts.items()}
        # Two versions can work on no more than their shares of the requests allow.
        at_once = route.ready_slots / sum(slots.values()) if slots else 0.0
        admission.part = max(PART_LEAST if slots else 0.0, sum(parts.values()) * at_once)

    @staticmethod
    def _resize(admission: _Admission) -> None:
        """Let as many in flight as the slots take; more of them while requests are short."""
        lane = admission.lane
        lane.limit = most_in_flight(admission.part, lane.service_s)

    def _find_unready(
        self, admission: _Admission, route: Route, ticket: Ticket, now: float
    ) -> None:
        """Nothing is ready: refuse the request where it would wait in vain."""
        admission.unready_count += 1
        within_s = route.wakes_within_s
        if within_s:
            if admission.waking.asked(now, within_s):
                self._on_asked()
            hopeless = now + admission.waking.ready_in_s(now, within_s) > ticket.deadline
            if hopeless or admission.waking.is_overdue(now, within_s):
                raise _asleep(admission, route, now)
            return
        # One that was ready a moment ago will likely be again: wait for it.
        if admission.ready_at is None or now - admission.ready_at > self._remembered_ready_s:
            raise _unready(route)

    @staticmethod
    def _displace(
        admission: _Admission, route: Route, displaced: Full | Ticket, now: float
    ) -> None:
        """Refuse the request for which there is no room, or the one that made room for it."""
        asleep_s = 0.0
        if not admission.lane.limit and route.wakes_within_s:
            asleep_s = admission.waking.ready_in_s(now, route.wakes_within_s)
        if isinstance(displaced, Full):
            raise _full(max(asleep_s, displaced.retry_after_s))
        turn = displaced.turn
        if turn is not None and not turn.done():
            turn.set_exception(_full(max(asleep_s, admission.lane.expected_wait_s(displaced))))

    @staticmethod
    def _pump(admission: _Admission, now: float) -> None:
        while (ticket := admission.lane.start_next(now)) is not None:
            turn = ticket.turn
            if turn is None or turn.done():
                admission.lane.release(ticket)
            else:
                turn.set_result(None)

    @staticmethod
    def _fail(admission: _Admission, ticket: Ticket, error: Exception) -> None:
        admission.lane.withdraw(ticket)
        turn = ticket.turn
        if turn is not None and not turn.done():
            turn.set_exception(error)


def _full(retry_after_s: float) -> RateLimited:
    return RateLimited(
        f"too many requests are waiting for this model; try again in {retry_after_s:.1f} s",
        retry_after_s,
    )


def _unready(route: Route | None) -> ModelUnready:
    said = route.unready if route else "the model was withdrawn"
    return ModelUnready(said)


def _asleep(admission: _Admission, route: Route, now: float) -> Unavailable:
    ready_in_s = admission.waking.ready_in_s(now, route.wakes_within_s)
    return Unavailable(
        f"the model '{route.deployment}' is not ready yet: it is being loaded; "
        f"that takes about {math.ceil(ready_in_s)} s",
        ready_in_s,
    )


def _expired(admission: _Admission, route: Route | None, now: float) -> Exception:
    if route is not None and route.wakes_within_s and not admission.lane.limit:
        return _asleep(admission, route, now)
    return DeadlineExceeded("the deadline passed in the queue")
