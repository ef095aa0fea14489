"""The scaling of all deployments that demand may scale, stepped with each look at the fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.demand import Asked
from busbar_scheduler.domain.fleet import Demand, Deployment, Snapshot
from busbar_scheduler.domain.forecasting import History
from busbar_scheduler.domain.scaling import Scale, Sight


@dataclass(frozen=True, slots=True)
class Remembered:
    """What outlives the scheduler that saw it."""

    history: History = field(default_factory=History)
    loading_s: float | None = None


@dataclass(slots=True)
class Autoscaler:
    """What demand asks of each deployment; deployments that are not scaled are left out."""

    scales: dict[str, Scale] = field(default_factory=dict[str, Scale])
    demands: dict[str, Demand] = field(default_factory=dict[str, Demand])
    remembered: dict[str, Remembered] = field(default_factory=dict[str, Remembered])
    """What was known of deployments that were not seen yet since the start."""
    _stepped_at: float | None = None

    def step(
        self, snapshot: Snapshot, asked: Mapping[str, Asked] | None, now_s: float, minute: int
    ) -> None:
        """Take what is asked now; `now_s` is monotonic, `minute` counts since 1970.

        With None, because no gateway is heard of, everything stays as it is.
        """
        scaled = {one.name: one for one in snapshot.deployments if one.scaled}
        for name in self.scales.keys() - scaled.keys():
            del self.scales[name]
            self.demands.pop(name, None)
        if not scaled:
            return
        elapsed_s = 0.0 if self._stepped_at is None else now_s - self._stepped_at
        self._stepped_at = now_s
        placed = Counter(
            held.deployment
            for assignments in snapshot.placements.values()
            for held in assignments
            if held.deployment in scaled
        )
        for name, deployment in scaled.items():
            if asked is None and name in self.scales:
                continue
            sight = _sight(snapshot, deployment, (asked or {}).get(name, Asked()), placed[name])
            scale = self.scales.get(name)
            if scale is None:
                known = self.remembered.pop(name, Remembered())
                scale = self.scales[name] = Scale(
                    placed[name], history=known.history, measured_loading_s=known.loading_s
                )
            self.demands[name] = scale.step(deployment, sight, elapsed_s, minute)

    def recall(self, deployment: str, known: Remembered) -> None:
        """Take over what another scheduler, or an earlier run, saw for longer than we did."""
        scale = self.scales.get(deployment)
        if scale is None:
            self.remembered[deployment] = known
            return
        if known.history.unchanged_judged_min > scale.history.unchanged_judged_min:
            scale.history = known.history
        if scale.measured_loading_s is None:
            scale.measured_loading_s = known.loading_s

    def worth_remembering(self) -> dict[str, Remembered]:
        """What should be kept, by deployment."""
        return {
            name: Remembered(scale.history, scale.measured_loading_s)
            for name, scale in self.scales.items()
        }

    def reason(self, deployment: str) -> str:
        """Why demand asks for as many replicas as it does; empty where it does not decide."""
        scale = self.scales.get(deployment)
        return scale.reason if scale else ""

    def is_asleep(self, deployment: str) -> bool:
        """Whether nothing is wanted of it."""
        demand = self.demands.get(deployment)
        return demand is not None and not demand.replicas


def _sight(snapshot: Snapshot, deployment: Deployment, asked: Asked, placed: int) -> Sight:
    route = snapshot.routes.get(deployment.name)
    if route is None:
        return Sight(asked, placed, ready=0, described=False)
    ready = sum(one.ready_replicas for one in route.targets)
    described = route.digest == deployment.digest and bool(route.model_metadata)
    return Sight(asked, placed, ready, described)
