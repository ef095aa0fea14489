"""The scaling of all deployments that demand may scale, stepped with each look at the fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from busbar_scheduler.domain.demand import Asked
from busbar_scheduler.domain.fleet import Demand, Deployment, Snapshot
from busbar_scheduler.domain.scaling import Scale, Sight


@dataclass(slots=True)
class Autoscaler:
    """What demand asks of each deployment; deployments that are not scaled are left out."""

    scales: dict[str, Scale] = field(default_factory=dict[str, Scale])
    demands: dict[str, Demand] = field(default_factory=dict[str, Demand])
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
            del self.demands[name]
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
                scale = self.scales[name] = Scale(placed[name])
            self.demands[name] = scale.step(deployment, sight, elapsed_s, minute)

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
