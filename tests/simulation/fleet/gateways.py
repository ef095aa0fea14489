"""Gateways: production's limits, lanes, attempts and choice of region; only time is not real.

What production does with futures and tasks (usecases/admitting, dispatch, watchdog) is done
here with events, in the same order.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from busbar_gateway.domain.admission import Full, Lane, Ticket, most_in_flight
from busbar_gateway.domain.attempts import SILENCE_S, UNSTARTED_SILENCE_S, UNTAKEN_S, Frame
from busbar_gateway.domain.costs import cost_of, known_cost
from busbar_gateway.domain.limits import Limits, Refused
from busbar_gateway.domain.policies import Policy
from busbar_gateway.domain.regions import Outstanding
from busbar_gateway.domain.routes import Manifest, Target
from busbar_gateway.domain.sharing import PART_LEAST, Peer, allot
from busbar_gateway.usecases.watchdog import TICK_S
from busbar_messaging.topology import SUSPECT_AFTER
from busbar_scheduler.domain.fleet import Route

from simulation.fleet.agenda import Agenda
from simulation.fleet.demand import Asked
from simulation.fleet.fairness import Fairness
from simulation.fleet.measures import Measures
from simulation.fleet.promises import Promises
from simulation.fleet.streams import Streams
from simulation.fleet.work import Outcome, Request, Said, Work

QUEUE_MAX, UNREADY_GRACE_S, REMEMBERED_READY_S = 1_024, 10.0, 30.0
"""As in the gateway's settings."""
TIMEOUT_S = 60.0
HEARTBEAT_S = 1.0
SPEAKS_AFTER_S = 0.1
"""When a node that took work first says so, and can be told to stop."""
_LOOK_S = 0.5
_BYTES_PER_TOKEN = 4


@dataclass(slots=True, eq=False, repr=False)
class _Admission:
    lane: Lane
    ready_at: float | None = None
    unready_count: int = 0
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    """Which part of each region's slots this gateway may fill."""
    part: float = 0.0
    shared_for: tuple[int, ...] = ()
    """What the gateways asked when the slots were last shared out."""
    waiting: dict[Ticket, Request] = field(default_factory=dict[Ticket, Request])
    fairness: dict[int, Fairness] = field(default_factory=dict[int, Fairness])


@dataclass(frozen=True, slots=True)
class _Known:
    """A route as gateways keep it."""

    targets: tuple[Target, ...] = ()
    slots: Mapping[str, int] = field(default_factory=dict[str, int])


_NOWHERE = _Known()


@dataclass(slots=True, eq=False, repr=False)
class Gateway:
    """One gateway of one region."""

    name: str
    region: str
    agenda: Agenda
    streams: Streams
    promises: Promises
    measures: Measures
    policies: Mapping[str, Policy]
    others: tuple[Gateway, ...] = ()
    """Who shares the slots with this one."""
    heartbeat: dict[str, int] = field(default_factory=dict[str, int])
    """Its last heartbeat: requests in flight and waiting, by deployment."""
    routes: dict[str, _Known] = field(default_factory=dict[str, _Known])
    outstanding: Outstanding = field(init=False)
    limits: Limits = field(default_factory=Limits)
    admissions: dict[str, _Admission] = field(default_factory=dict[str, _Admission])
    out: Counter[str] = field(default_factory=Counter[str])
    """Requests that are out, by region, counted once more."""
    answered: Counter[str] = field(default_factory=Counter[str])
    """Requests since the start, by deployment."""
    working: dict[Request, Work] = field(default_factory=dict[Request, Work])
    """Requests that a node works on, as far as it has said."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.outstanding = Outstanding(self.region)

    # --- arriving --------------------------------------------------------------------------------

    def arrive(self, tenant: str, deployment: str, asked: Asked) -> None:
        """A customer sends a request."""
        now, policy = self.agenda.now, self.policies[tenant]
        self.promises.arrived += 1
        manifest = Manifest(deployment, "1", "chat", "default")
        cost = known_cost(manifest, asked.prompt_tokens * _BYTES_PER_TOKEN)
        deadline = now + TIMEOUT_S
        ticket = Ticket(tenant, deadline, now, policy.band, policy.weight, cost)
        request = Request(
            next(self._numbers),
            tenant,
            deployment,
            asked.prompt_tokens,
            asked.answer_tokens,
            asked.streamed,
            self,
            deadline,
            ticket,
        )
        if policy.limited:
            estimate = self.limits.estimate(tenant, asked.prompt_tokens, asked.answer_tokens)
            found = self.limits.admit(tenant, policy, estimate, now)
            if isinstance(found, Refused):
                self._end(request, Outcome.LIMITED)
                return
            request.grant = found
        self._enter(request)

    def _enter(self, request: Request) -> None:
        now, ticket = self.agenda.now, request.ticket
        admission = self._admission(request.deployment)
        lane = admission.lane
        if lane.try_start(ticket, now):
            self._started(admission, request)
            return
        admission.unready_count += not lane.limit
        known = admission.ready_at is not None and now - admission.ready_at <= REMEMBERED_READY_S
        if request.deployment not in self.routes or (not lane.limit and not known):
            self._end(request, Outcome.UNREADY)
            return
        displaced = lane.enqueue(ticket, now)
        if isinstance(displaced, Full):
            self._end(request, Outcome.FULL)
            return
        admission.waiting[ticket] = request
        self._fairness(admission, ticket).waits(request.tenant, ticket.weight)
        if displaced is not None:
            self._end(self._no_longer_waits(admission, displaced), Outcome.FULL)
        if lane.may_start(ticket):
            self._pump(admission)

    def _admission(self, deployment: str) -> _Admission:
        found = self.admissions.get(deployment)
        if found is None:
            found = self.admissions[deployment] = _Admission(Lane(QUEUE_MAX))
            self._apply(deployment, found)
        return found

    # --- turns -----------------------------------------------------------------------------------

    def routed(self, route: Route) -> None:
        """A new route is known."""
        targets = tuple(Target(one.region, one.ready_slots) for one in route.targets)
        slots = {one.region: one.ready_slots for one in targets if one.ready_slots > 0}
        self.routes[route.deployment] = _Known(targets, slots)
        if (admission := self.admissions.get(route.deployment)) is not None:
            self._apply(route.deployment, admission)

    def _apply(self, deployment: str, admission: _Admission) -> None:
        if admission.lane.limit or any(self.slots(deployment).values()):
            admission.ready_at = self.agenda.now
        self._share(deployment, admission)
        self._resize(admission)
        self._pump(admission)

    def _share(self, deployment: str, admission: _Admission) -> None:
        """As Admissions of the gateway does, for deployments with one version."""
        known, asked = self.routes.get(deployment), self._asked(deployment, admission)
        admission.shared_for = asked
        if known is None:
            admission.shares, admission.part = {}, 0.0
            return
        peers = [Peer(*one) for one in zip(self._regions(), asked, strict=True)]
        parts = allot(known.slots, peers[0], peers[1:])
        admission.shares = {region: part / known.slots[region] for region, part in parts.items()}
        admission.part = max(PART_LEAST if known.slots else 0.0, sum(parts.values()))

    def slots(self, deployment: str) -> Mapping[str, int]:
        """What is ready, by region, as far as it knows."""
        return self.routes.get(deployment, _NOWHERE).slots

    def fills(self, deployment: str, region: str) -> float:
        """How many slots of a region it uses, or may use where they are lent to it."""
        admission, slots = self.admissions.get(deployment), self.slots(deployment)
        if admission is None:
            return 0.0
        part = admission.shares.get(region, 0.0) * slots[region]
        return min(part, self.heartbeat.get(deployment, 0)) if region == self.region else part

    def _regions(self) -> tuple[str, ...]:
        return (self.region, *(one.region for one in self.others))

    def _asked(self, deployment: str, admission: _Admission) -> tuple[int, ...]:
        """What it asks itself now, and what the others last said that they ask."""
        lane = admission.lane
        heard = [one.heartbeat.get(deployment, 0) for one in self.others]
        return (lane.in_flight + lane.waiting, *heard)

    @staticmethod
    def _resize(admission: _Admission) -> None:
        lane = admission.lane
        lane.limit = most_in_flight(admission.part, lane.service_s)

    def _pump(self, admission: _Admission) -> None:
        lane, now = admission.lane, self.agenda.now
        while (ticket := lane.start_next(now)) is not None:
            request = self._no_longer_waits(admission, ticket)
            self._started(admission, request)

    def _started(self, admission: _Admission, request: Request) -> None:
        ticket, lane = request.ticket, admission.lane
        fairness = self._fairness(admission, ticket)
        fairness.started(request.tenant, ticket.weight, ticket.charged, lane.in_flight)
        self.promises.hold("VTC's bound", not fairness.broken, fairness.broken)
        now = self.agenda.now
        self.measures.admitted(now - ticket.arrived, now)
        request.attempts.tries = 1
        self.agenda.at(request.deadline + TICK_S, self._expire, request)
        self._publish(request)

    def _no_longer_waits(self, admission: _Admission, ticket: Ticket) -> Request:
        request = admission.waiting.pop(ticket)
        if ticket.flow is None or not ticket.flow.waiting:
            self._fairness(admission, ticket).waits_not(request.tenant)
        return request

    def _fairness(self, admission: _Admission, ticket: Ticket) -> Fairness:
        return admission.fairness.setdefault(ticket.band, Fairness())

    # --- sending ---------------------------------------------------------------------------------

    def _publish(self, request: Request) -> None:
        now, name = self.agenda.now, request.deployment
        targets, shares = self.routes.get(name, _NOWHERE).targets, self.admissions[name].shares
        region = self.outstanding.choose(name, targets, shares, now, avoiding=request.lost_in)
        self._move(request, region or request.region or self.region)
        self.working.pop(request, None)
        attempt = request.attempts.begin(now)
        request.published += 1
        work = Work(
            request,
            attempt,
            request.prompt_tokens + request.delivered_tokens,
            max(1, request.answer_tokens - request.delivered_tokens),
        )
        self.streams.publish(request.region, work)
        if not request.attempts.last_sign:
            self._look_later(work, UNSTARTED_SILENCE_S)

    def _look_later(self, work: Work, after_s: float) -> None:
        self.agenda.after(after_s + TICK_S, self._look, work)

    def _look(self, work: Work) -> None:
        """What the watchdog does, at the moments at which it could find something."""
        request, attempts, now = work.request, work.request.attempts, self.agenda.now
        ended = request.outcome is not None or request.ended_attempt == work.attempt
        if ended or attempts.current != work.attempt:
            return
        if attempts.last_sign:
            attempts.last_sign = now if work.silent_since is None else work.silent_since
            if attempts.lost(now, taken=True):
                self._lost(work)
            elif work.silent_since is not None:
                self._look_later(work, SILENCE_S - (now - work.silent_since))
        elif attempts.lost(now, taken=work.copy is not None):
            self._lost(work)
        else:
            self.agenda.after(_LOOK_S, self._look, work)
            if work.copy is None and now - attempts.published > UNTAKEN_S:
                self._withdraw(work)

    def _withdraw(self, work: Work) -> None:
        """Nobody takes it where it waits: send the request elsewhere, where that can be."""
        request, now = work.request, self.agenda.now
        name, waits_in = request.deployment, request.region
        targets, shares = self.routes.get(name, _NOWHERE).targets, self.admissions[name].shares
        elsewhere = self.outstanding.elsewhere(name, targets, shares, waits_in, now)
        if elsewhere is None:
            return
        if self._hears_of(name, waits_in):
            self.outstanding.heard(name, waits_in, now)
        self.outstanding.not_taken(name, waits_in, now)
        self._move(request, elsewhere)
        self.measures.not_taken += 1
        self._publish(request)

    def _hears_of(self, deployment: str, region: str) -> bool:
        """Whether a node there works for it: it would say so each second."""
        return any(
            (request.deployment, request.region) == (deployment, region)
            and not work.over
            and work.silent_since is None
            for request, work in self.working.items()
        )

    def _lost(self, work: Work) -> None:
        self.measures.lost += 1
        work.request.lost_in = work.request.region
        if work.copy is not None and work.copy.reachable:
            work.copy.drop(work)
        self._try_again(work)

    def _try_again(self, work: Work) -> None:
        request, attempts, now = work.request, work.request.attempts, self.agenda.now
        heard_until = now if work.silent_since is None else work.silent_since
        made = work.tokens_made(heard_until) if work.copy is not None else 0
        if request.streamed and made:
            attempts.handed_out()
            request.delivered_tokens += made
        if not attempts.may_retry(resumable=request.streamed):
            lost = Outcome.INTERRUPTED if attempts.delivering else Outcome.GIVEN_UP
            self._leave(request, lost)
            return
        pause_s = attempts.backoff_s()
        attempts.tried(unheard=not attempts.last_sign)
        self.measures.tried_again += 1
        request.ended_attempt = work.attempt
        self.agenda.after(pause_s, self._send_again, request)

    def _send_again(self, request: Request) -> None:
        if request.outcome is None and self.agenda.now < request.deadline:
            self._publish(request)

    def _move(self, request: Request, region: str) -> None:
        if request.region == region:
            return
        if request.region:
            self.out[request.region] -= 1
            self.outstanding.back(request.deployment, request.region)
        if region:
            self.out[region] += 1
            self.outstanding.sent(request.deployment, region)
        request.region = region

    # --- hearing ---------------------------------------------------------------------------------

    def said(self, work: Work, node: str, what: Said) -> None:
        """A frame has arrived."""
        request, verdict = work.request, self._judge(work, node)
        if verdict is Frame.COUNTS and request.ended_attempt == work.attempt:
            return  # it was given up, and the next one waits for its turn
        if verdict is Frame.OBSOLETE:
            self.measures.obsolete += 1
            if work.copy is not None and what in {Said.STARTED, Said.WORKING}:
                self.agenda.after(SPEAKS_AFTER_S, work.copy.drop, work)
            return
        match what:
            case Said.FINISHED:
                self._leave(request, Outcome.SERVED)
            case Said.HANDED_BACK:
                self._try_again(work)
            case Said.ENGINE_LOST:
                request.attempts.engine_losses += 1
                if request.attempts.blamed() and not request.attempts.delivering:
                    self._leave(request, Outcome.GIVEN_UP)
                else:
                    self._try_again(work)
            case Said.STARTED | Said.WORKING:
                self.working[request] = work

    def _judge(self, work: Work, node: str) -> Frame:
        request, now = work.request, self.agenda.now
        if request.outcome is not None:
            return Frame.OBSOLETE
        verdict = request.attempts.frame(work.attempt, node, now)
        if verdict is not Frame.OBSOLETE:
            self.outstanding.heard(request.deployment, request.region, now)
        return verdict

    def silent(self, work: Work) -> None:
        """From now on nothing arrives of a work."""
        work.silent_since = self.agenda.now
        self._look_later(work, SILENCE_S)

    # --- ending ----------------------------------------------------------------------------------

    def _expire(self, request: Request) -> None:
        if request.outcome is None:
            self._leave(request, Outcome.EXPIRED)

    def _leave(self, request: Request, outcome: Outcome) -> None:
        """What was let in has ended: give its slot back."""
        admission, ticket = self.admissions[request.deployment], request.ticket
        served = outcome is Outcome.SERVED
        cost = cost_of(request.prompt_tokens, request.answer_tokens) if served else None
        before = ticket.charged
        admission.lane.finish(ticket, self.agenda.now, cost)
        fairness = self._fairness(admission, ticket)
        fairness.corrected(request.tenant, ticket.weight, ticket.charged - before)
        self._move(request, "")
        self.working.pop(request, None)
        if served:
            self.answered[request.deployment] += 1
        self._end(request, outcome)
        if admission.lane.waiting:
            self._pump(admission)

    def _end(self, request: Request, outcome: Outcome) -> None:
        self.promises.end(request, outcome)
        self.measures.ended(request, outcome)
        if request.grant is not None:
            grant, request.grant = request.grant, None
            served = outcome is Outcome.SERVED
            used = (request.prompt_tokens, request.answer_tokens) if served else (0, 0)
            self.limits.settle(grant, sum(used), used[1])

    # --- each second -----------------------------------------------------------------------------

    def beat(self) -> None:
        """Say what is asked of this gateway."""
        now = self.agenda.now
        self.heartbeat = {
            name: asked
            for name, one in self.admissions.items()
            if (asked := one.lane.in_flight + one.lane.waiting)
        }
        self.limits.forget_silent(now - SUSPECT_AFTER.total_seconds())
        demands = self.limits.measure(lambda tenant: self.policies[tenant], now)
        for other in self.others:
            other.limits.heard(self.name, demands, now)

    def tick(self, asked_for: Iterable[str]) -> dict[str, None]:
        """Share the slots out by what all have said, fail who waited too long.

        Looks at what was asked for lately; returns what was shared out anew.
        """
        now, anew = self.agenda.now, dict[str, None]()
        for deployment in asked_for:
            admission = self.admissions.get(deployment)
            if admission is None:
                continue
            lane = admission.lane
            if self._asked(deployment, admission) != admission.shared_for:
                self._share(deployment, admission)
                anew[deployment] = None
            elif not lane.in_flight and not lane.waiting:
                continue  # nothing that its size depends on has changed
            self._resize(admission)
            if not lane.waiting:
                continue
            self._pump(admission)
            for ticket in lane.expired(now):
                self._give_up(admission, ticket, Outcome.EXPIRED)
            if not lane.limit:
                self._fail_unready(admission, now)
        return anew

    def _fail_unready(self, admission: _Admission, now: float) -> None:
        began = now - UNREADY_GRACE_S
        if admission.ready_at is not None and admission.ready_at > began:
            return
        for ticket in admission.lane.waiting_since_before(began):
            self._give_up(admission, ticket, Outcome.UNREADY)

    def _give_up(self, admission: _Admission, ticket: Ticket, outcome: Outcome) -> None:
        admission.lane.withdraw(ticket)
        self._end(self._no_longer_waits(admission, ticket), outcome)

    def in_hand(self) -> dict[str, int]:
        """What it has not finished yet."""
        found = {f"out to {region}": count for region, count in self.out.items()}
        for name, one in self.admissions.items():
            found[f"waiting for {name}"] = one.lane.waiting + len(one.waiting)
            found[f"in flight of {name}"] = one.lane.in_flight
        return {f"{self.name}: {what}": count for what, count in found.items()}
