"""Sites and nodes: power, links, models that load, slots that are taken, agents that obey."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from busbar_node_agent.domain.backoff import backoff_s
from busbar_node_agent.domain.desired import Assignment as Wanted
from busbar_node_agent.domain.desired import Present, next_steps
from busbar_node_agent.usecases.replica import DRAIN_TIMEOUT_S
from busbar_scheduler.domain import economy
from busbar_scheduler.domain.fleet import Assignment, Deployment, Replica, ReplicaState

from simulation.fleet.agenda import Agenda
from simulation.fleet.day import Box
from simulation.fleet.demand import Speed
from simulation.fleet.promises import Promises
from simulation.fleet.streams import Streams
from simulation.fleet.work import Inbox, Said, Work

IDLE_RATIO = 0.3
"""Of its power, what a loaded model draws without work."""
HUB_NOTICES_S = 6.0
"""How long a hub holds what a silent leaf asked for: it pings each 2 s, and misses two."""
LOAD_FAILS_RATIO = 0.01
_LOAD_RETRY_FIRST_S, _LOAD_RETRY_CAP_S = 1.0, 60.0
_HOLDING = {
    ReplicaState.LOADING,
    ReplicaState.WARMING,
    ReplicaState.READY,
    ReplicaState.DRAINING,
}
_TENSORS = b"tensors"
"""What a ready replica says of its model; nobody here reads it."""
_J_PER_KWH = 3_600_000


@dataclass(slots=True)
class World:
    """What machines are in: the same for all of them."""

    agenda: Agenda
    random: Random
    streams: Streams
    inbox: Inbox
    promises: Promises
    deployments: Mapping[str, Deployment]
    speeds: Mapping[str, Speed]


@dataclass(slots=True, eq=False, repr=False)
class Place:
    """One site: its link, its power, what it draws."""

    key: str
    cap_w: int
    price_nanos_per_kwh: int
    agenda: Agenda
    promises: Promises
    linked: bool = True
    powered: bool = True
    in_force_at: float = 0.0
    """When its cap came, or comes, into force."""
    draw_w: float = 0.0
    energy_j: float = 0.0
    _drawn_until: float = 0.0

    def draw(self, more_w: float) -> None:
        """Draw more from now on, or less."""
        now = self.agenda.now
        self.energy_j += self.draw_w * (now - self._drawn_until)
        self._drawn_until = now
        self.draw_w += more_w
        if more_w > 0:
            self.check()

    def opened(self) -> None:
        """Count energy from now on."""
        self.draw(0.0)
        self.energy_j = 0.0

    def check(self) -> None:
        """Whether what it draws is allowed."""
        since_s = self.agenda.now - self.in_force_at
        self.promises.drew(self.key, self.draw_w, self.cap_w, since_s)

    @property
    def cost_nanos(self) -> int:
        """What its energy has cost so far."""
        return int(self.energy_j / _J_PER_KWH * self.price_nanos_per_kwh)


@dataclass(slots=True, eq=False, repr=False)
class Copy:
    """One replica on one node."""

    wanted: Wanted
    deployment: Deployment
    machine: Machine
    state: ReplicaState = ReplicaState.FETCHING
    leaving: bool = False
    pulls: int = 0
    life: int = 0
    """Changes whenever it begins anew: what was to happen to it before does not."""
    works: dict[Work, None] = field(default_factory=dict[Work, None])
    after: tuple[Copy, ...] = ()
    """What had to leave when it came: it is not loaded before they are gone."""
    left: bool = False
    failures: int = 0
    drawn_w: float = 0.0

    @property
    def slots(self) -> int:
        """Requests at a time."""
        return self.wanted.slots

    @property
    def serves(self) -> bool:
        """Whether it takes work."""
        return self.state is ReplicaState.READY and not self.leaving and self.machine.speaks

    @property
    def reachable(self) -> bool:
        """As `Holder`."""
        return self.machine.speaks

    def take(self, work: Work) -> bool:
        """As `Puller`."""
        machine = self.machine
        if not machine.speaks or self.state is not ReplicaState.READY:
            return False
        world, name, now = machine.world, self.deployment.name, machine.world.agenda.now
        work.copy, work.silent_since = self, None
        if now >= work.request.deadline:
            work.over = True
            self._pull()
            return True
        self.works[work] = None
        region, taken = machine.region, len(self.works)
        world.promises.on_node(region, machine.key, work.request, taken, self.slots)
        speed = world.speeds[name]
        work.first_token_at = now + speed.prompt_s(work.prompt_tokens) * machine.slowness
        work.ends_at = work.first_token_at + speed.answer_s(work.answer_tokens) * machine.slowness
        self._draw()
        world.inbox.said(work, machine.key, Said.STARTED)
        world.agenda.at(work.ends_at, self._finish, work)
        return True

    def drop(self, work: Work) -> None:
        """Stop working on it: it ended, was cancelled, or its node has lost it."""
        if work.over:
            return
        work.over = True
        del self.works[work]
        self._draw()
        if self.state is ReplicaState.READY and not self.leaving:
            self._pull()
        if self.leaving and not self.works:
            self.machine.gone(self)

    def begin(self, *, cached: bool) -> None:
        """Fetch if need be, then load."""
        world, self.life = self.machine.world, self.life + 1
        self.state = ReplicaState.FETCHING
        whole_s = economy.loading_s(self.deployment, cached=False)
        load_s = economy.loading_s(self.deployment, cached=True)
        fetch_s = 0.0 if cached else (whole_s - load_s) * world.random.uniform(0.8, 1.3)
        world.agenda.after(fetch_s, self._fetched, self.life)
        self._draw()
        self.machine.report()

    def stop(self, within_s: float) -> None:
        """Ask for no more, finish what is in hand, hand back what takes too long."""
        self.leaving = True
        self.pulls += 1
        self.life += 1
        if not self.works:
            self.machine.gone(self)
            return
        self.state = ReplicaState.DRAINING
        self.machine.world.agenda.after(within_s, self._hand_back, self.life)
        self.machine.report()

    def lose(self, said: Said | None) -> None:
        """What runs it is gone; what was in hand is said to be lost, if there is who can say so."""
        self.pulls += 1
        self.life += 1
        for work in list(self.works):
            work.over = True
            if said is None:
                self.machine.world.inbox.silent(work)
        lost, self.works = self.works, {}
        self.state = ReplicaState.UNKNOWN
        self._draw()
        if said is not None:
            for work in lost:
                self.machine.tell(work, said)

    def subscribe(self) -> None:
        """Ask for work for every free slot; what was asked for before is void."""
        self.pulls += 1
        if self.state is ReplicaState.READY and not self.leaving:
            for _ in range(self.slots - len(self.works)):
                self._pull()

    def _pull(self) -> None:
        if self.machine.speaks:
            self.machine.world.streams.pull(self.machine.region, self.deployment.name, self)

    def _finish(self, work: Work) -> None:
        if not work.over:
            self.machine.tell(work, Said.FINISHED)
            self.drop(work)

    def _fetched(self, life: int) -> None:
        if life != self.life:
            return
        self.machine.cached.add(self.wanted.bundle_digest)
        self.load()

    def load(self) -> None:
        """Load what was fetched, if what had to leave before has left."""
        digest, world = self.wanted.bundle_digest, self.machine.world
        waits = self.state is ReplicaState.FETCHING and not self.leaving
        if not waits or digest not in self.machine.cached or not all(x.left for x in self.after):
            return
        self.life += 1
        self.state = ReplicaState.LOADING
        self.machine.report()
        self._draw()
        load_s = economy.loading_s(self.deployment, cached=True) * world.random.uniform(0.8, 1.3)
        world.agenda.after(load_s, self._loaded, self.life)

    def _loaded(self, life: int) -> None:
        if life != self.life:
            return
        world = self.machine.world
        if world.random.random() < LOAD_FAILS_RATIO:
            self.failures += 1
            self.state = ReplicaState.FAILED
            pause_s = backoff_s(self.failures, first_s=_LOAD_RETRY_FIRST_S, cap_s=_LOAD_RETRY_CAP_S)
            world.agenda.after(pause_s, self._again, self.life)
        else:
            self.failures, self.state = 0, ReplicaState.READY
            self.subscribe()
        self._draw()
        self.machine.report()

    def _again(self, life: int) -> None:
        if life == self.life:
            self.begin(cached=True)

    def _hand_back(self, life: int) -> None:
        if life == self.life:
            for work in list(self.works):
                self.machine.tell(work, Said.HANDED_BACK)
                self.drop(work)

    def _draw(self) -> None:
        if self.state not in _HOLDING or not self.machine.alive:
            draws_w = 0.0
        else:
            busy = len(self.works) / self.slots
            draws_w = self.deployment.manifest.power_w * (IDLE_RATIO + (1 - IDLE_RATIO) * busy)
        if draws_w != self.drawn_w:
            more_w, self.drawn_w = draws_w - self.drawn_w, draws_w
            self.machine.place.draw(more_w)

    def held(self) -> None:
        """Draw nothing more: it is gone."""
        self.left, self.state = True, ReplicaState.UNKNOWN
        self._draw()


@dataclass(slots=True, eq=False, repr=False)
class Machine:
    """One node and its agent."""

    box: Box
    place: Place
    world: World
    key: str = field(init=False)
    region: str = field(init=False)
    agent_up: bool = True
    engine_up: bool = True
    slowness: float = 1.0
    copies: dict[str, Copy] = field(default_factory=dict[str, Copy])
    cached: set[str] = field(default_factory=set[str])
    version: int = 0
    """Changes whenever it has something new to report."""
    silent_since: float | None = None
    on_report: Callable[[], None] = lambda: None  # nobody listens yet
    on_news: Callable[[Machine], None] = lambda machine: None
    _told: tuple[tuple[Assignment, ...], float] = ((), DRAIN_TIMEOUT_S)

    def __post_init__(self) -> None:
        self.key, self.region = self.box.key, self.box.key.split(".")[0]

    @property
    def alive(self) -> bool:
        """Whether its agent runs."""
        return self.agent_up and self.place.powered

    @property
    def speaks(self) -> bool:
        """Whether it is heard."""
        return self.agent_up and self.place.powered and self.place.linked

    def replicas(self) -> tuple[Replica, ...]:
        """What it reports that it holds."""
        return tuple(
            Replica(
                one.deployment.name,
                one.wanted.bundle_digest,
                one.state,
                one.slots,
                model_metadata=_TENSORS if one.state is ReplicaState.READY else b"",
            )
            for one in self.copies.values()
        )

    def report(self) -> None:
        """Something is not as it was."""
        self.version += 1
        self.on_news(self)
        used_mib = sum(
            one.deployment.manifest.memory_mib
            for one in self.copies.values()
            if one.state in _HOLDING
        )
        self.world.promises.loaded(self.key, self.box.memory_mib, used_mib)
        if self.speaks:
            self.on_report()

    def tell(self, work: Work, what: Said) -> None:
        """Send a frame, if it gets through."""
        if self.speaks:
            self.world.inbox.said(work, self.key, what)

    def desire(self, held: tuple[Assignment, ...], drain_s: float) -> None:
        """Be told what to hold; it hears that as soon as it can."""
        self._told = (held, drain_s)
        self._wake()

    def _wake(self) -> None:
        self.world.agenda.after(0.0, self._reconcile)

    def _reconcile(self) -> None:
        """Do what it was told, as the agent does."""
        if not self.speaks:
            return
        held, drain_s = self._told
        desired = {
            one.deployment: Wanted(one.deployment, one.digest, one.slots)
            for one in held
            if one.deployment in self.world.deployments
        }
        present = {name: Present(one.wanted, one.leaving) for name, one in self.copies.items()}
        steps = next_steps(desired, present)
        for name in steps.stop:
            self.copies[name].stop(drain_s)
        for wanted in steps.start:
            leaving = tuple(one for one in self.copies.values() if one.leaving)
            deployment = self.world.deployments[wanted.deployment]
            copy = Copy(wanted, deployment, self, after=leaving)
            self.copies[wanted.deployment] = copy
            if self.engine_up:
                copy.begin(cached=wanted.bundle_digest in self.cached)

    def gone(self, copy: Copy) -> None:
        """A replica has left."""
        if self.copies.get(copy.deployment.name) is copy:
            del self.copies[copy.deployment.name]
        copy.held()
        self.report()
        for other in self.copies.values():
            other.load()
        self._wake()

    # --- what befalls it -------------------------------------------------------------------------

    def fell_silent(self) -> None:
        """Nothing of it is heard any more, for whatever reason."""
        if self.silent_since is None:
            self.silent_since = self.world.agenda.now
            self.on_news(self)
        for copy in self.copies.values():
            for work in copy.works:
                if work.silent_since is None:
                    work.silent_since = self.world.agenda.now
                    self.world.inbox.silent(work)
            self.world.agenda.after(HUB_NOTICES_S, self._forgotten, copy, copy.pulls)

    def heard_again(self) -> None:
        """It is heard again, if nothing else is in the way."""
        if not self.speaks:
            return
        self.silent_since = None
        for copy in list(self.copies.values()):
            for work in list(copy.works):
                work.silent_since = None
                self.tell(work, Said.WORKING)
            copy.subscribe()
        self.version += 1
        self.on_news(self)
        self._wake()

    def died(self) -> None:
        """Its agent is gone, with everything that it held but the files on disk."""
        self.fell_silent()
        for copy in list(self.copies.values()):
            copy.lose(None)
            copy.left = True
        self.copies.clear()

    def engine_died(self) -> None:
        """Its Triton is gone; the agent says so and starts another."""
        self.engine_up = False
        for copy in list(self.copies.values()):
            copy.lose(Said.ENGINE_LOST)
            if copy.leaving:
                self.gone(copy)
        self.report()

    def engine_back(self) -> None:
        """Its Triton runs again and loads what it should."""
        self.engine_up = True
        for copy in list(self.copies.values()):
            copy.begin(cached=copy.wanted.bundle_digest in self.cached)
        self.report()

    def _forgotten(self, copy: Copy, pulls: int) -> None:
        if not self.speaks and copy.pulls == pulls:
            copy.pulls += 1
