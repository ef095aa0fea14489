"""Gateways: production's limits, lanes, attempts and choice of region; only time is not real.

What production does with futures and tasks (usecases/admitting, dispatch, watchdog) is done
here with events, in the same order.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from busbar_gateway.domain.admission import Full, Lane, Ticket, share_of_slots
from busbar_gateway.domain.attempts import SILENCE_S, UNSTARTED_SILENCE_S, Frame
from busbar_gateway.domain.costs import cost_of, known_cost
from busbar_gateway.domain.limits import Limits, Refused
from busbar_gateway.domain.policies import Policy
from busbar_gateway.domain.regions import choose_region
from busbar_gateway.domain.routes import Manifest, Target
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
_LOOK_S = 0.5
_BYTES_PER_TOKEN = 4


@dataclass(slots=True, eq=False, repr=False)
class _Admission:
    lane: Lane
    ready_at: float | None = None
    unready_count: int = 0
    waiting: dict[Ticket, Request] = field(default_factory=dict[Ticket, Request])
    fairness: dict[int, Fairness] = field(default_factory=dict[int, Fairness])


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
    gateways: Callable[[], int]
    """How many share the slots with this one."""
    routes: dict[str, Route] = field(default_factory=dict[str, Route])
    limits: Limits = field(default_factory=Limits)
    admissions: dict[str, _Admission] = field(default_factory=dict[str, _Admission])
    out: Counter[str] = field(default_factory=Counter[str])
    """Requests that are out, by region."""
    answered: Counter[str] = field(default_factory=Counter[str])
    """Requests since the start, by deployment."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    # --- arriving --------------------------------------------------------------------------------

    def arrive(self, tenant: str, deployment: str, asked: Asked) -> None:
        """A customer sends a request."""
        now, policy = self.agenda.now, self.policies[tenant]
        self.promises.arrived += 1
        route = self.routes.get(deployment)
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
        self._enter(request, route)

    def _enter(self, request: Request, route: Route | None) -> None:
        now, ticket = self.agenda.now, request.ticket
        admission = self._admission(request.deployment)
        lane = admission.lane
        if lane.try_start(ticket, now):
            self._started(admission, request)
            return
        admission.unready_count += not lane.limit
        known = admission.ready_at is not None and now - admission.ready_at <= REMEMBERED_READY_S
        if route is None or (not lane.limit and not known):
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
        self.routes[route.deployment] = route
        if (admission := self.admissions.get(route.deployment)) is not None:
            self._apply(route.deployment, admission)

    def _apply(self, deployment: str, admission: _Admission) -> None:
        if admission.lane.limit or self._ready_slots(deployment):
            admission.ready_at = self.agenda.now
        self._resize(deployment, admission)
        self._pump(admission)

    def _resize(self, deployment: str, admission: _Admission) -> None:
        lane, slots = admission.lane, self._ready_slots(deployment)
        lane.limit = share_of_slots(slots, self.gateways(), lane.service_s)

    def _ready_slots(self, deployment: str) -> int:
        route = self.routes.get(deployment)
        return sum(one.ready_slots for one in route.targets) if route else 0

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
        now, route = self.agenda.now, self.routes.get(request.deployment)
        targets = [Target(t.region, t.ready_slots) for t in route.targets] if route else []
        region = choose_region(targets, self.region, self.out) or request.region or self.region
        self._move(request, region)
        attempt = request.attempts.begin(now)
        request.published += 1
        work = Work(
            request,
            attempt,
            request.prompt_tokens + request.delivered_tokens,
            max(1, request.answer_tokens - request.delivered_tokens),
        )
        self.streams.publish(region, work)
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

    def _lost(self, work: Work) -> None:
        self.measures.lost += 1
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
        if request.region:
            self.out[request.region] -= 1
        if region:
            self.out[region] += 1
        request.region = region

    # --- hearing ---------------------------------------------------------------------------------

    def said(self, work: Work, node: str, what: Said) -> None:
        """A frame has arrived."""
        request = work.request
        verdict = Frame.OBSOLETE
        if request.outcome is None:
            verdict = request.attempts.frame(work.attempt, node, self.agenda.now)
        if verdict is Frame.COUNTS and request.ended_attempt == work.attempt:
            return  # it was given up, and the next one waits for its turn
        if verdict is Frame.OBSOLETE:
            self.measures.obsolete += 1
            if work.copy is not None and what in {Said.STARTED, Said.WORKING}:
                self.agenda.after(0.0, work.copy.drop, work)
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
                pass

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
            self.limits.settle(grant, self.policies[request.tenant], sum(used), used[1])

    # --- each second -----------------------------------------------------------------------------

    def beat(self, others: tuple[Gateway, ...]) -> None:
        """Publish demand, let limits be applied, fail who waited too long."""
        now = self.agenda.now
        self.limits.forget_silent(now - SUSPECT_AFTER.total_seconds())
        demands = self.limits.measure(lambda tenant: self.policies[tenant], now)
        for other in others:
            if other is not self:
                other.limits.heard(self.name, demands, now)
        for deployment, admission in self.admissions.items():
            lane = admission.lane
            if not lane.in_flight and not lane.waiting:
                continue  # nothing that its size depends on has changed
            self._resize(deployment, admission)
            if not lane.waiting:
                continue
            self._pump(admission)
            for ticket in lane.expired(now):
                self._give_up(admission, ticket, Outcome.EXPIRED)
            if not lane.limit:
                self._fail_unready(admission, now)

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
