"""Sum up the fleet as it is known at this moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from busbar_telemetry.domain import rollup
from busbar_telemetry.domain.events import RecentEvents
from busbar_telemetry.domain.fleet import Fleet
from busbar_telemetry.domain.fleet_view import BusView, FleetView


@dataclass(frozen=True, slots=True)
class FleetViewer:
    """Takes the view; `clock` never goes back, `wall_clock` is Unix time, both in seconds, and
    `nodes_clock` is that by which nodes were heard of.
    """

    fleet: Fleet
    events: RecentEvents
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    nodes_clock: Callable[[], float]
    bus_heard: Callable[[], bool]

    def view(self) -> FleetView:
        """The fleet now."""
        now_s = self.clock()
        nodes = rollup.node_views(self.fleet, self.nodes_clock())
        return FleetView(
            as_of_unix_ms=int(self.wall_clock() * 1000),
            bus=BusView(connected=self.bus_heard()),
            totals=rollup.totals(nodes),
            nodes=nodes,
            regions=rollup.region_views(nodes),
            gateways=rollup.gateway_views(self.fleet, now_s),
            deployments=rollup.deployment_views(self.fleet, now_s),
            events=self.events.newest_first(),
        )
