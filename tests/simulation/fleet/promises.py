"""What must hold at every step; whatever does not is a breach, with the seed to see it again.

Nothing here asks the code that decides: what is counted is counted again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.fleet import Assignment, Deployment, Node, Placements, Site

from simulation.fleet.agenda import Agenda
from simulation.fleet.work import Outcome, Request

LATE_S = 1.5
"""How long after its deadline a request may end: a tick of the gateway."""
POWER_GRACE_S = 30.0
"""How long after the end of a notice a site may still draw more than its new cap."""
_ROUNDING_W, _ROUNDING_SLOTS = 0.01, 1e-6


class Breach(AssertionError):
    """A promise of the design was broken."""

    def __init__(self, seed: int, at_s: float, what: str) -> None:
        super().__init__(seed, at_s, what)
        self.seed, self.at_s, self.what = seed, at_s, what

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.at_s:.3f} s: {self.what}"


@dataclass(slots=True)
class Promises:
    """Judges one day."""

    seed: int
    agenda: Agenda
    deployments: Mapping[str, Deployment]
    not_made: frozenset[str] = frozenset()
    """What whoever decides does not promise: it is counted and goes on."""
    arrived: int = 0
    ended: Counter[Outcome] = field(default_factory=Counter[Outcome])
    checks: Counter[str] = field(default_factory=Counter[str])
    """How often each promise was looked at."""
    broken: Counter[str] = field(default_factory=Counter[str])
    """How often one that was not made was not kept."""
    _held: dict[str, tuple[Assignment, ...]] = field(
        default_factory=dict[str, tuple[Assignment, ...]]
    )
    """What was counted at each node; by site and deployment it comes to these:"""
    _drawn_w: Counter[str] = field(default_factory=Counter[str])
    _at: defaultdict[str, Counter[str]] = field(
        default_factory=lambda: defaultdict[str, Counter[str]](Counter)
    )

    def hold(self, promise: str, kept: bool, what: str) -> None:
        """A promise is kept, or this is the end."""
        self.checks[promise] += 1
        if kept:
            return
        self.broken[promise] += 1
        if promise not in self.not_made:
            raise Breach(self.seed, self.agenda.now, f"{promise}: {what}")

    def on_node(self, region: str, node: str, request: Request, taken: int, slots: int) -> None:
        """A node begins to work on a request."""
        name = request.deployment
        self.hold("no slot is overused", taken <= slots, f"{taken} of {slots} of {name} at {node}")
        self.hold(
            "residency is never broken",
            self.deployments[name].may_run_in(region),
            f"{name} in {region}",
        )

    def loaded(self, node: str, memory_mib: int, used_mib: int) -> None:
        """A node has taken memory for a model."""
        self.hold(
            "no memory is overused", used_mib <= memory_mib, f"{used_mib} of {memory_mib} at {node}"
        )

    def drew(self, site: str, draw_w: float, cap_w: int, since_s: float) -> None:
        """A site draws so much; `since_s` is how long its cap has been in force."""
        within = draw_w <= cap_w + _ROUNDING_W or since_s <= POWER_GRACE_S
        self.hold("power stays below the cap", within, f"{draw_w:.0f} of {cap_w} W at {site}")

    def shared(self, deployment: str, region: str, filled: float, slots: int) -> None:
        """All gateways together may fill so much of a region's slots."""
        once = filled <= slots + _ROUNDING_SLOTS
        what = f"{filled:.2f} of {slots} of {deployment} in {region}"
        self.hold("no slot is given twice", once, what)

    def end(self, request: Request, outcome: Outcome) -> None:
        """A request ends, for the first time and in time."""
        once = request.outcome is None
        self.hold("one outcome", once, f"{request.number} is {request.outcome} and {outcome}")
        late_s = self.agenda.now - request.deadline
        self.hold("ended in time", late_s <= LATE_S, f"{request.number} {late_s:.1f} s late")
        whole = outcome is not Outcome.INTERRUPTED
        self.hold("streams go on", whole, f"{request.number} after {request.attempts.tries} tries")
        request.outcome, request.ended_at = outcome, self.agenda.now
        self.ended[outcome] += 1

    def planned(
        self,
        nodes: Mapping[str, Node],
        sites: Mapping[str, Site],
        placements: Placements,
        short: Mapping[str, int],
    ) -> None:
        """A plan respects what nodes and sites have, and what deployments are promised."""
        for key, held in placements.items():
            if self._held.get(key, ()) is not held:
                self._recount(key, nodes, held)
        for key in self._held.keys() - placements.keys():
            self._recount(key, nodes, ())
        for key, drawn_w in self._drawn_w.items():
            cap_w = sites[key].power_cap_w or drawn_w
            self.hold("plans keep to the cap", drawn_w <= cap_w, f"{drawn_w} of {cap_w} W at {key}")
        for deployment in self.deployments.values():
            self._survives(deployment, self._at[deployment.name], short.get(deployment.name, 0))

    def _recount(self, key: str, nodes: Mapping[str, Node], held: tuple[Assignment, ...]) -> None:
        """What is planned for a node is not what was planned before."""
        site = key.rpartition(".")[0]
        for one in self._held.pop(key, ()):
            self._drawn_w[site] -= self._power_w(one)
            self._at[one.deployment][site] -= 1
        node = nodes.get(key) if held else None
        if node is None:
            return
        self._fits(node, held)
        self._held[key] = held
        for one in held:
            self._drawn_w[site] += self._power_w(one)
            self._at[one.deployment][site] += 1

    def _fits(self, node: Node, held: tuple[Assignment, ...]) -> None:
        needs = [self.deployments[one.deployment] for one in held]
        memory_mib = sum(one.manifest.memory_mib for one in needs)
        slots = sum(one.manifest.slots for one in needs)
        reported = node.memory_mib > 0
        fits = memory_mib <= node.memory_mib and slots <= node.slots
        self.hold("plans fit nodes", fits or not reported, f"{memory_mib} MiB at {node.key}")
        for one in needs:
            self.hold("residency is never planned away", one.may_run_on(node), f"{one} {node.key}")

    def _power_w(self, held: Assignment) -> int:
        return self.deployments[held.deployment].manifest.power_w

    def _survives(self, deployment: Deployment, at: Counter[str], short: int) -> None:
        if not deployment.survives_site_loss:
            return
        left = at.total() - max(at.values(), default=0)
        kept = left + short >= deployment.replicas
        self.hold("N+1", kept, f"{deployment.name}: {dict(at)} leaves {left}, short {short}")

    def site_lost(self, site: str, ready_before: Counter[str], ready_after: Counter[str]) -> None:
        """Whoever was promised to survive this has what it was promised, at once."""
        for one in self.deployments.values():
            if one.survives_site_loss and ready_before[one.name] > 0:
                enough = ready_after[one.name] >= one.replicas
                self.hold("survives a site", enough, f"{one.name} without {site}")

    def at_rest(self, in_hand: Mapping[str, int]) -> None:
        """When all is over, nothing is anywhere."""
        lost = self.arrived - self.ended.total()
        self.hold("no request is lost", lost == 0, f"{lost} of {self.arrived}")
        left = {where: count for where, count in in_hand.items() if count}
        self.hold("nothing is left behind", not left, str(left))
