"""How far apart tenants come who wait for the same model, against what VTC allows.

Two tenants that wait throughout an interval are charged in it, each divided by its weight,
amounts that differ by at most 2 (L + C K) / w_min: L the largest charge at a start, K the
largest correction, C the most requests in flight (docs/decisions/0013; Sheng et al.,
OSDI'24). What they were charged is summed up here from the outside.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Fairness:
    """One band of one lane."""

    gap: float = 0.0
    """The largest difference seen so far."""
    bound: float = 0.0
    """What it was allowed to be then."""
    broken: str = ""
    """Who came further apart than allowed; empty while nobody has."""
    _charged: dict[str, float] = field(default_factory=dict[str, float])
    _weights: dict[str, float] = field(default_factory=dict[str, float])
    _began: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """Who waits → what those who waited had been charged when it began to, in that order."""
    _start_max: float = 0.0
    _correction_max: float = 0.0
    _in_flight_max: int = 0

    def waits(self, tenant: str, weight: float) -> None:
        """Something of a tenant waits from now on, at least."""
        self._weights[tenant] = weight
        if tenant not in self._began:
            others = (*self._began, tenant)
            self._began[tenant] = {one: self._charged.get(one, 0.0) for one in others}

    def waits_not(self, tenant: str) -> None:
        """Nothing of it waits any more."""
        self._began.pop(tenant, None)

    def started(self, tenant: str, weight: float, charge: float, in_flight: int) -> None:
        """A request of a tenant was let in."""
        self._start_max = max(self._start_max, charge)
        self._in_flight_max = max(self._in_flight_max, in_flight)
        self._add(tenant, charge / weight)

    def corrected(self, tenant: str, weight: float, difference: float) -> None:
        """A charge was found to be wrong."""
        self._correction_max = max(self._correction_max, abs(difference))
        self._add(tenant, difference / weight)

    def _add(self, tenant: str, service: float) -> None:
        self._charged[tenant] = self._charged.get(tenant, 0.0) + service
        if len(self._began) > 1 and tenant in self._began:
            self._compare(tenant)

    def _compare(self, tenant: str) -> None:
        largest = self._start_max + self._in_flight_max * self._correction_max
        order = {one: at for at, one in enumerate(self._began)}
        for other in self._began:
            if other == tenant:
                continue
            later = max(tenant, other, key=lambda one: order[one])
            then = self._began[later]
            if tenant not in then or other not in then:
                continue
            mine = self._charged[tenant] - then[tenant]
            its = self._charged.get(other, 0.0) - then[other]
            gap = abs(mine - its)
            bound = 2 * largest / min(self._weights[tenant], self._weights[other])
            if gap > self.gap:
                self.gap, self.bound = gap, bound
            if gap > bound:
                self.broken = f"{tenant} and {other} are {gap:.0f} apart, {bound:.0f} is allowed"
