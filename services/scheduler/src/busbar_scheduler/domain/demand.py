"""What customers ask of deployments, gathered from what every gateway says that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Carried:
    """What one gateway carries for one deployment; counts are since that gateway started."""

    in_flight: int = 0
    queued: int = 0
    completed_count: int = 0
    unready_count: int = 0
    """Requests that found no ready replica."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of one deployment now, over all gateways."""

    in_flight: int = 0
    queued: int = 0
    completed: int = 0
    """Requests answered since the last look."""
    unready: int = 0
    """Requests since the last look that found no ready replica."""

    @property
    def anything(self) -> bool:
        """Whether anybody asks."""
        return bool(self.in_flight or self.queued or self.completed or self.unready)


@dataclass(slots=True)
class _Gateway:
    run_id: str
    loads: Mapping[str, Carried]
    heard_at: float


@dataclass(slots=True)
class Gathering:
    """The gateways that are heard of. One that falls silent carries nothing any more."""

    silent_after_s: float
    _gateways: dict[str, _Gateway] = field(default_factory=dict[str, _Gateway])
    _completed: dict[str, int] = field(default_factory=dict[str, int])
    _unready: dict[str, int] = field(default_factory=dict[str, int])

    def heard(
        self, gateway_id: str, run_id: str, loads: Mapping[str, Carried], now: float
    ) -> frozenset[str]:
        """Take a report in; the deployments for which somebody has to wait, by this report."""
        before = self._gateways.get(gateway_id)
        self._gateways[gateway_id] = _Gateway(run_id, loads, now)
        waiting = {name for name, load in loads.items() if load.queued}
        if before is None:  # what it counted before we listened is not news
            return frozenset(waiting)
        known = before.loads if before.run_id == run_id else {}
        for name, load in loads.items():
            then = known.get(name, Carried())
            self._completed[name] = self._completed.get(name, 0) + max(
                0, load.completed_count - then.completed_count
            )
            unready = max(0, load.unready_count - then.unready_count)
            self._unready[name] = self._unready.get(name, 0) + unready
            if unready:
                waiting.add(name)
        return frozenset(waiting)

    def gone(self, gateway_id: str) -> None:
        """A gateway said goodbye."""
        self._gateways.pop(gateway_id, None)

    def look(self, now: float) -> Mapping[str, Asked] | None:
        """What is asked now, by deployment; None while no gateway is heard of.

        What was counted since the last look is counted no more.
        """
        for gateway_id, one in list(self._gateways.items()):
            if now - one.heard_at > self.silent_after_s:
                del self._gateways[gateway_id]
        if not self._gateways:
            return None
        completed, self._completed = self._completed, {}
        unready, self._unready = self._unready, {}
        in_flight, queued = dict[str, int](), dict[str, int]()
        for one in self._gateways.values():
            for name, load in one.loads.items():
                in_flight[name] = in_flight.get(name, 0) + load.in_flight
                queued[name] = queued.get(name, 0) + load.queued
        names = in_flight.keys() | completed.keys() | unready.keys()
        return {
            name: Asked(
                in_flight.get(name, 0),
                queued.get(name, 0),
                completed.get(name, 0),
                unready.get(name, 0),
            )
            for name in names
        }
