"""One day under one policy, from the first request to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

from busbar_scheduler.domain.orders import Described

from simulation.fleet.agenda import Agenda
from simulation.fleet.control import Control
from simulation.fleet.day import Day
from simulation.fleet.demand import Asked, Asking
from simulation.fleet.gateways import HEARTBEAT_S, TIMEOUT_S, Gateway
from simulation.fleet.machines import Machine, Place, World
from simulation.fleet.measures import BUCKETS, Measures
from simulation.fleet.policies import Busbar, LeastLoaded, Policy, Static
from simulation.fleet.promises import Promises
from simulation.fleet.streams import Streams
from simulation.fleet.troubles import Troubles
from simulation.fleet.work import Outcome, Said, Work

POLICIES = ("busbar", "static", "least loaded")
WARMS_S = 600.0
"""How long before the day begins the fleet has been there."""
_LARGE = 200
"""With more nodes the scheduler gathers changes for longer, as planning takes longer."""
_SAMPLES = 3 * BUCKETS
_REST_S = TIMEOUT_S + 30.0
"""After the last arrival everything has ended."""


class _Inboxes:
    """Frames go to the gateway whose request it is."""

    def said(self, work: Work, node: str, what: Said) -> None:
        work.request.gateway.said(work, node, what)

    def silent(self, work: Work) -> None:
        work.request.gateway.silent(work)


@dataclass(slots=True, eq=False, repr=False)
class Run:
    """A day and all that takes part in it."""

    day: Day
    policy_name: str
    policy: Policy | None = None
    """Decides instead of the one of that name."""
    agenda: Agenda = field(default_factory=lambda: Agenda(-WARMS_S))
    measures: Measures = field(init=False)
    promises: Promises = field(init=False)
    streams: Streams = field(init=False)
    places: dict[str, Place] = field(init=False)
    machines: dict[str, Machine] = field(init=False)
    gateways: tuple[Gateway, ...] = field(init=False)
    control: Control = field(init=False)
    troubles: Troubles = field(init=False)
    events: int = 0
    _asked_for: dict[str, None] = field(default_factory=dict[str, None])
    """Deployments of which something was in flight or waiting at the last heartbeats."""

    def __post_init__(self) -> None:
        day, agenda = self.day, self.agenda
        deployments = {one.name: one for one in day.deployments}
        large = len(day.boxes) > _LARGE
        self.measures = Measures(day.lasts_s)
        self.promises = Promises(day.seed, agenda, deployments)
        self.streams = Streams(agenda, self._taken)
        self.policy = self.policy or policy_of(self.policy_name, day, agenda)
        self.promises.not_made = self.policy.not_promised
        self.places = {
            one.key: Place(
                one.key, one.power_cap_w, one.energy_nanos_per_kwh, agenda, self.promises
            )
            for one in day.sites
        }
        world = World(
            agenda,
            Random(f"world {day.seed}"),
            self.streams,
            _Inboxes(),
            self.promises,
            deployments,
            day.speeds,
        )
        self.machines = {
            box.key: Machine(box, self.places[box.key.rpartition(".")[0]], world)
            for box in day.boxes
        }
        self.gateways = tuple(self._gateway(region) for region in day.regions)
        for one in self.gateways:
            one.others = tuple(other for other in self.gateways if other is not one)
        self.control = Control(
            agenda,
            self.policy,
            day.deployments,
            tuple(self.machines.values()),
            self.gateways,
            {one.key: Described(one) for one in day.sites},
            self.promises,
            self.measures,
            apart_s=5.0 if large else 1.0,
            looks_every_s=2.0,
        )
        self.troubles = Troubles(agenda, self.control, self.places, self.machines, self.promises)

    def play(self, progress: Callable[[float], None] | None = None) -> None:
        """Let the day pass; raises Breach when a promise is broken."""
        self.control.start()
        self.troubles.expect(self.day.faults)
        for number, asking in enumerate(self.day.asking):
            random = Random(f"asking {self.day.seed} {number}")
            self._next(asking, asking.requests(random, self.day.lasts_s))
        self.agenda.at(0.0, self._open)
        self.agenda.at(HEARTBEAT_S, self._beat)
        for step in range(1, 101):
            self.events += self.agenda.run(self.day.lasts_s * step / 100)
            if progress is not None:
                progress(step / 100)
        self.events += self.agenda.run(self.day.lasts_s + _REST_S)
        in_hand = {}
        for gateway in self.gateways:
            in_hand |= gateway.in_hand()
        self.promises.at_rest(in_hand)

    @property
    def served(self) -> int:
        """How many requests were answered in full."""
        return self.measures.outcomes[Outcome.SERVED]

    @property
    def energy_kwh(self) -> float:
        """What all sites drew."""
        return sum(place.energy_j for place in self.places.values()) / 3_600_000

    @property
    def energy_nanos(self) -> int:
        """What that cost."""
        return sum(place.cost_nanos for place in self.places.values())

    def fairness(self) -> tuple[float, float]:
        """The largest gap between tenants, and what it was allowed to be."""
        found = [
            one
            for gateway in self.gateways
            for admission in gateway.admissions.values()
            for one in admission.fairness.values()
            if one.bound
        ]
        worst = max(found, key=lambda one: one.gap / one.bound, default=None)
        return (worst.gap, worst.bound) if worst else (0.0, 0.0)

    # --- what happens by itself ------------------------------------------------------------------

    def _open(self) -> None:
        """From now on it counts."""
        for place in self.places.values():
            place.opened()
        self.measures.loads = self.measures.moves = self.measures.plans = 0
        self.agenda.after(self._sample_s, self._sample)

    def _next(self, asking: Asking, requests: Iterator[Asked]) -> None:
        asked = next(requests, None)
        if asked is not None:
            self.agenda.at(asked.at_s, self._arrive, asking, asked, requests)

    def _arrive(self, asking: Asking, asked: Asked, requests: Iterator[Asked]) -> None:
        self._next(asking, requests)
        self.measures.part(asked.at_s).arrived += 1
        gateway = next(one for one in self.gateways if one.region == asked.region)
        gateway.arrive(asking.tenant, asking.deployment, asked)

    def _beat(self) -> None:
        before = self._asked_for
        for gateway in self.gateways:
            gateway.beat()
        self._asked_for = {name: None for one in self.gateways for name in one.heartbeat}
        anew = dict[str, None]()
        for gateway in self.gateways:
            anew.update(gateway.tick(before | self._asked_for))
        self._shared(anew)
        self.agenda.after(HEARTBEAT_S, self._beat)

    def _shared(self, names: Iterable[str]) -> None:
        """Now that all have heard the same, nobody may count on a slot that another one uses."""
        for name in names:
            for region, slots in self.gateways[0].slots(name).items():
                filled = sum(one.fills(name, region) for one in self.gateways)
                self.promises.shared(name, region, filled, slots)

    def _taken(self, work: Work, waited_s: float) -> None:
        self.measures.stream_s.append(waited_s)

    @property
    def _sample_s(self) -> float:
        return self.day.lasts_s / _SAMPLES

    def _sample(self) -> None:
        slots = busy = 0
        for machine in self.machines.values():
            for copy in machine.copies.values() if machine.copies else ():
                if copy.serves:
                    slots += copy.slots
                    busy += len(copy.works)
        draw_w = sum(place.draw_w for place in self.places.values())
        self.measures.sample(self.agenda.now, slots, busy, draw_w)
        if self.agenda.now < self.day.lasts_s:
            self.agenda.after(self._sample_s, self._sample)

    def _gateway(self, region: str) -> Gateway:
        return Gateway(
            f"g-{region}",
            region,
            self.agenda,
            self.streams,
            self.promises,
            self.measures,
            self.day.tenants,
        )


def policy_of(name: str, day: Day, agenda: Agenda) -> Policy:
    deployments = {one.name: one for one in day.deployments}
    match name:
        case "busbar":
            return Busbar(lambda: agenda.now)
        case "static":
            return Static(_for_the_average(day))
        case _:
            return LeastLoaded(deployments)


def _for_the_average(day: Day) -> dict[str, int]:
    """Replicas that the average of the day takes, with slots 70 % busy."""
    busy = dict.fromkeys(day.speeds, 0.0)
    for asking in day.asking:
        speed = day.speeds[asking.deployment]
        busy[asking.deployment] += asking.requests_per_s * asking.slot_s(speed)
    return {
        one.name: min(
            one.most, max(one.replicas, round(busy[one.name] / one.manifest.slots / 0.7 + 0.5))
        )
        for one in day.deployments
    }
