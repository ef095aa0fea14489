"""The scheduler's loop in virtual time: gather, plan, publish; and who leads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from busbar_messaging.topology import SUSPECT_AFTER
from busbar_node_agent.usecases.replica import DRAIN_TIMEOUT_S
from busbar_scheduler.domain.arrays import differing
from busbar_scheduler.domain.demand import Asked
from busbar_scheduler.domain.evicting import Evictions
from busbar_scheduler.domain.fleet import (
    Assignment,
    Deployment,
    Health,
    Node,
    Placements,
    Replica,
    Routes,
    Snapshot,
)
from busbar_scheduler.domain.health import EVICT_AFTER, Signs, judge, until_next_change_s
from busbar_scheduler.domain.orders import Described, Told

from simulation.fleet.agenda import Agenda
from simulation.fleet.evictions import Evicted
from simulation.fleet.gateways import Gateway
from simulation.fleet.machines import Machine
from simulation.fleet.measures import Measures
from simulation.fleet.policies import Policy
from simulation.fleet.promises import Promises

FORGET_AFTER_S = 600.0
"""As FleetTable: a node that is silent for so long is dropped from the picture."""
_WELL = Signs(silent_s=0.0, draining_s=None, ready=True, reported=True, same_run=True)
_WELL_HEALTH = judge(_WELL, SUSPECT_AFTER)
_WATCHES_FROM_S = -60.0
"""What is asked is looked at from so long before anything is."""
_EPOCH_MS = 1_800_000_000_000


@dataclass(slots=True, eq=False, repr=False)
class Control:
    """The scheduler: what it sees, and what it has published."""

    agenda: Agenda
    policy: Policy
    deployments: tuple[Deployment, ...]
    machines: tuple[Machine, ...]
    gateways: tuple[Gateway, ...]
    sites: dict[str, Described]
    promises: Promises
    measures: Measures
    apart_s: float
    """Changes that come closer together than this share a cycle."""
    looks_every_s: float
    """How often demand is looked at."""
    leads_from: float = float("-inf")
    listens_from: float = float("-inf")
    """Since when whoever leads has heard nodes: it knows of no earlier silence."""
    placements: Placements = field(default_factory=dict[str, tuple[Assignment, ...]])
    routes: Routes = field(default_factory=dict)
    short: Mapping[str, int] = field(default_factory=dict[str, int])
    _reports: dict[str, tuple[int, tuple[Replica, ...]]] = field(
        default_factory=dict[str, tuple[int, tuple[Replica, ...]]]
    )
    _by_key: dict[str, Machine] = field(init=False)
    _news: dict[Machine, None] = field(init=False)
    """Of whom something is not as it was."""
    _ill: dict[Machine, None] = field(default_factory=dict[Machine, None])
    """Who was silent or without a Triton at the last look."""
    _nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    """As of the last look; the same object as before where nothing is new."""
    _evictions: Evictions = field(default_factory=Evictions)
    _evicted: Evicted = field(init=False)
    _due: float = float("inf")
    _counted: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def __post_init__(self) -> None:
        self._by_key = {one.key: one for one in self.machines}
        self._news = dict.fromkeys(self.machines)
        for machine in self.machines:
            machine.on_report, machine.on_news = self.changed, self._heard_of
        self._evicted = Evicted((one.key for one in self.machines), self.promises)

    def start(self) -> None:
        """Lead from now on."""
        self.changed()
        self.agenda.at(_WATCHES_FROM_S, self._look)

    def changed(self, after_s: float = 0.0) -> None:
        """Something is not as it was, or will not be: plan again then."""
        at = max(self.agenda.now + after_s + self.apart_s, self.leads_from)
        if at < self._due:
            self._due = at
            self.agenda.at(at, self._cycle_at, at)

    def unled(self, lasts_s: float, settles_s: float) -> None:
        """Nobody leads for a while; then somebody does who first listens."""
        self.listens_from = self.agenda.now + lasts_s
        self.leads_from = self.listens_from + settles_s
        self.policy.restarted()
        self._evictions = Evictions()
        self._evicted.restarted()
        self._due = float("inf")
        self.changed()

    def tell(self, site: str, told: Told | None) -> None:
        """The operator tells a site to drain, or to serve again (None)."""
        self.sites[site] = self.sites[site].telling("", told)
        self.changed()
        if told is not None:
            self.changed((told.grace_ms - told.drain_within_ms) / 1_000)

    def cap(self, site: str, power_cap_w: int) -> None:
        """A site may draw so much from now on."""
        described = self.sites[site]
        self.sites[site] = replace(described, site=replace(described.site, power_cap_w=power_cap_w))
        self.changed()

    def unix_ms(self) -> int:
        """The time of day."""
        return _EPOCH_MS + int(self.agenda.now * 1_000)

    # --- a cycle ---------------------------------------------------------------------------------

    def _cycle_at(self, at: float) -> None:
        if at != self._due:
            return
        self._due = float("inf")
        if self.agenda.now < self.leads_from:
            self.changed()
            return
        self._cycle()

    def _cycle(self) -> None:
        # 1. Gather.
        snapshot = self.gather()
        # 2. Plan.
        decided = self.policy.decide(snapshot, self.agenda.now)
        self.measures.plans += 1
        self.promises.planned(self._nodes, snapshot.sites, decided.placements, decided.short)
        # 3. Publish the difference, placements before routes.
        before, self.placements, self.short = self.placements, decided.placements, decided.short
        told = sorted(differing(before, decided.placements))
        self._look_at_evictions(told)
        changed = [self._by_key[key] for key in told]
        self._count_moves(before, told)
        for machine in changed:
            held = decided.placements.get(machine.key, ())
            machine.desire(held, self._drain_s(machine))
        for name, route in decided.routes.items():
            if self.routes.get(name) != route:
                for gateway in self.gateways:
                    gateway.routed(route)
        self.routes = decided.routes
        if changed:
            self.changed()

    def gather(self) -> Snapshot:
        """The fleet as the scheduler sees it."""
        now_ms = self.unix_ms()
        given_up, changes_s = self._give_up(), float("inf")
        for machine in self._ill | self._news:
            changes_s = min(changes_s, self._see(machine, given_up))
        self._news.clear()
        if changes_s < float("inf"):
            self.changed(changes_s + 0.01)
        return Snapshot(
            1,
            self.deployments,
            tuple(self._nodes.values()),
            self.placements,
            self.routes,
            {key: one.site_at(now_ms) for key, one in self.sites.items()},
        )

    def _heard_of(self, machine: Machine) -> None:
        self._news[machine] = None

    def _see(self, machine: Machine, given_up: frozenset[str]) -> float:
        """Take in how a node is; seconds until silence alone changes that."""
        if machine.silent_since is None and machine.engine_up:
            self._ill.pop(machine, None)
            self._take_in(machine, _WELL_HEALTH)
            return float("inf")
        self._ill[machine] = None
        if self._forgotten(machine):
            self._nodes.pop(machine.key, None)
            return float("inf")
        signs = self._signs(machine, given_up)
        self._take_in(machine, judge(signs, SUSPECT_AFTER))
        if machine.silent_since is None:  # who is heard of is heard of all the time
            return float("inf")
        return until_next_change_s(signs, SUSPECT_AFTER)

    def _take_in(self, machine: Machine, health: Health) -> None:
        version, replicas = self._reports.get(machine.key, (-1, ()))
        if machine.speaks and machine.version != version:
            version, replicas = machine.version, machine.replicas()
            self._reports[machine.key] = (version, replicas)
        before = self._nodes.get(machine.key)
        if before and before.health is health and before.replicas is replicas:
            return
        region, site, _ = machine.key.split(".")
        box = machine.box
        self._nodes[machine.key] = Node(
            machine.key, region, site, box.memory_mib, box.slots, health, replicas
        )

    def _give_up(self) -> frozenset[str]:
        """Which of the nodes that are gone lose what they hold, as FleetTable does."""
        overdue = {
            key: silent_s
            for key, silent_s in self._silences().items()
            if silent_s >= EVICT_AFTER.total_seconds() and key in self._nodes
        }
        holding = [key for key in overdue if self.placements.get(key)]
        given_up = self._evictions.look(overdue, self._nodes.keys(), holding, self.agenda.now)
        if len(given_up) < len(overdue):
            self.changed()
        return given_up

    def _look_at_evictions(self, told: list[str]) -> None:
        silent_s = self._silences()
        taken = {key for key in told if key not in self.placements}
        holding = {key for key in silent_s if self.placements.get(key)}
        self._evicted.look(silent_s, holding | taken, holding, self.agenda.now)

    def _silences(self) -> dict[str, float]:
        return {
            machine.key: self._silent_s(machine)
            for machine in self._ill | self._news
            if machine.silent_since is not None
        }

    def _forgotten(self, machine: Machine) -> bool:
        return self._silent_s(machine) > FORGET_AFTER_S and not self.placements.get(machine.key)

    def _silent_s(self, machine: Machine) -> float:
        """For how long whoever leads has not heard of it."""
        if machine.silent_since is None:
            return 0.0
        return max(0.0, self.agenda.now - max(machine.silent_since, self.listens_from))

    def _signs(self, machine: Machine, given_up: frozenset[str]) -> Signs:
        return Signs(
            silent_s=self._silent_s(machine),
            draining_s=None,
            ready=machine.engine_up,
            reported=True,
            same_run=True,
            given_up=machine.key in given_up,
        )

    def _drain_s(self, machine: Machine) -> float:
        told = self.sites[machine.place.key].told
        return told.drain_within_ms / 1_000 if told is not None else DRAIN_TIMEOUT_S

    def _count_moves(self, before: Placements, nodes: list[str]) -> None:
        """Of each deployment, what came while something else of it went."""
        came, went = Counter[str](), Counter[str]()
        for key in nodes:
            now = {one.deployment for one in self.placements.get(key, ())}
            then = {one.deployment for one in before.get(key, ())}
            came.update(now - then)
            went.update(then - now)
        self.measures.loads += came.total()
        self.measures.moves += (came & went).total()

    # --- demand ----------------------------------------------------------------------------------

    def _look(self) -> None:
        """What gateways say of their load, now and then."""
        if self.agenda.now >= self.leads_from:
            asked = {one.name: self._asked(one.name) for one in self.deployments}
            placed = Snapshot(1, self.deployments, (), self.placements, self.routes)
            if self.policy.look(placed, asked, self.agenda.now):
                self.changed()
        self.agenda.after(self.looks_every_s, self._look)

    def _asked(self, name: str) -> Asked:
        admissions = [one.admissions[name] for one in self.gateways if name in one.admissions]
        answered = sum(gateway.answered[name] for gateway in self.gateways)
        unready = sum(one.unready_count for one in admissions)
        asked = Asked(
            sum(one.lane.in_flight for one in admissions),
            sum(one.lane.waiting for one in admissions),
            answered - self._counted[name, "answered"],
            unready - self._counted[name, "unready"],
        )
        self._counted[name, "answered"], self._counted[name, "unready"] = answered, unready
        return asked
