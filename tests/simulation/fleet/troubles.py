"""What goes wrong, happening."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from busbar_messaging.topology import SUSPECT_AFTER
from busbar_scheduler.domain.fleet import Order, ReplicaState
from busbar_scheduler.domain.orders import Told

from simulation.fleet.agenda import Agenda
from simulation.fleet.control import Control
from simulation.fleet.day import Fault, Trouble
from simulation.fleet.machines import Machine, Place
from simulation.fleet.promises import POWER_GRACE_S, Promises


@dataclass(slots=True, eq=False, repr=False)
class Troubles:
    """Lets the faults of a day happen."""

    agenda: Agenda
    control: Control
    places: dict[str, Place]
    machines: dict[str, Machine]
    promises: Promises
    happened: Counter[Trouble] = field(default_factory=Counter[Trouble])
    _at: dict[str, list[Machine]] = field(init=False)

    def __post_init__(self) -> None:
        self._at = defaultdict(list)
        for machine in self.machines.values():
            self._at[machine.place.key].append(machine)

    def expect(self, faults: Iterable[Fault]) -> None:
        """Let them happen at their times."""
        happens: dict[Trouble, Callable[[Fault], None]] = {
            Trouble.OUTAGE: self._outage,
            Trouble.MAINTENANCE: self._maintenance,
            Trouble.CURTAILMENT: self._curtailment,
            Trouble.CUT: self._cut,
            Trouble.CRASH: self._crash,
            Trouble.ENGINE: self._engine,
            Trouble.SLOW: self._slow,
            Trouble.UNLED: self._unled,
        }
        for fault in faults:
            self.agenda.at(fault.at_s, self._happen, happens[fault.trouble], fault)

    def _happen(self, what: Callable[[Fault], None], fault: Fault) -> None:
        self.happened[fault.trouble] += 1
        what(fault)

    # --- sites -----------------------------------------------------------------------------------

    def _outage(self, fault: Fault) -> None:
        before = self._ready()
        self._dark(fault.where)
        self._survived(fault.where, before)
        self.agenda.after(fault.lasts_s, self._lit, fault.where)

    def _maintenance(self, fault: Fault) -> None:
        grace_ms = int(fault.notice_s * 1_000)
        self.control.tell(fault.where, Told(Order.DRAIN, self.control.unix_ms(), grace_ms))
        self.agenda.after(fault.notice_s, self._dark, fault.where)
        self.agenda.after(fault.notice_s + fault.lasts_s, self._back, fault.where)

    def _back(self, site: str) -> None:
        self.control.tell(site, None)
        self._lit(site)

    def _dark(self, site: str) -> None:
        place = self.places[site]
        place.powered = False
        for machine in self._at[site]:
            machine.died()
        self.control.changed(SUSPECT_AFTER.total_seconds())

    def _lit(self, site: str) -> None:
        self.places[site].powered = True
        self._heard(self._at[site])

    def _curtailment(self, fault: Fault) -> None:
        place = self.places[fault.where]
        whole_w, left_w = place.cap_w, int(place.cap_w * fault.degree)
        self.control.cap(fault.where, left_w)
        self.agenda.after(fault.notice_s, self._capped, place, left_w)
        self.agenda.after(fault.notice_s + fault.lasts_s, self._capped, place, whole_w)
        self.agenda.after(fault.notice_s + fault.lasts_s, self.control.cap, fault.where, whole_w)

    def _capped(self, place: Place, cap_w: int) -> None:
        place.cap_w, place.in_force_at = cap_w, self.agenda.now
        self.agenda.after(POWER_GRACE_S + 1, place.check)

    def _cut(self, fault: Fault) -> None:
        self.places[fault.where].linked = False
        for machine in self._at[fault.where]:
            machine.fell_silent()
        self.control.changed(SUSPECT_AFTER.total_seconds())
        self.agenda.after(fault.lasts_s, self._restored, fault.where)

    def _restored(self, site: str) -> None:
        self.places[site].linked = True
        self._heard(self._at[site])

    def _heard(self, machines: Iterable[Machine]) -> None:
        for machine in machines:
            machine.heard_again()
        self.control.changed()

    # --- nodes -----------------------------------------------------------------------------------

    def _crash(self, fault: Fault) -> None:
        machine = self.machines[fault.where]
        machine.agent_up = False
        machine.died()
        self.control.changed(SUSPECT_AFTER.total_seconds())
        self.agenda.after(fault.lasts_s, self._started, machine)

    def _started(self, machine: Machine) -> None:
        machine.agent_up = True
        self._heard([machine])

    def _engine(self, fault: Fault) -> None:
        machine = self.machines[fault.where]
        if machine.alive and machine.engine_up:
            machine.engine_died()
            self.control.changed()
            self.agenda.after(fault.lasts_s, self._engine_back, machine)

    def _engine_back(self, machine: Machine) -> None:
        machine.engine_back()
        self.control.changed()

    def _slow(self, fault: Fault) -> None:
        machine = self.machines[fault.where]
        machine.slowness = fault.degree
        self.agenda.after(fault.lasts_s, self._well, machine)

    @staticmethod
    def _well(machine: Machine) -> None:
        machine.slowness = 1.0

    def _unled(self, fault: Fault) -> None:
        self.control.unled(fault.lasts_s, SUSPECT_AFTER.total_seconds())

    # --- what a loss leaves ----------------------------------------------------------------------

    def _ready(self) -> Counter[str]:
        return Counter(
            name
            for machine in self.machines.values()
            if machine.speaks
            for name, copy in machine.copies.items()
            if copy.state is ReplicaState.READY and not copy.leaving
        )

    def _survived(self, site: str, before: Counter[str]) -> None:
        """Only what was whole before is held to its promise: one loss at a time."""
        placed = Counter(
            one.deployment for held in self.control.placements.values() for one in held
        )
        whole = Counter(
            {
                name: count
                for name, count in before.items()
                if count == placed[name] and not self.control.short.get(name)
            }
        )
        self.promises.site_lost(site, whole, self._ready())
