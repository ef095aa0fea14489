"""The tables behind the fleet view: the last report of everyone, and when it was heard.

Every table is bounded, and what has been silent for long is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from busbar_telemetry.domain.rates import CounterWindow
from busbar_telemetry.domain.reports import (
    DeploymentReport,
    GatewayReport,
    LeaseReport,
    NodeReport,
    RouteReport,
)

SUSPECT_AFTER_S = 4.0
"""Not heard of for this long: gets no new work."""
LOST_AFTER_S = 60.0
"""Not heard of for this long: its replicas are placed elsewhere."""
FORGET_AFTER_S = 900.0
"""Not heard of for this long: no longer shown."""

ENTRIES_MAX = 5_000

V = TypeVar("V")


class Table(Generic[V]):
    """A dictionary that takes no new key beyond `ENTRIES_MAX` and counts what it refused."""

    def __init__(self) -> None:
        self._rows: dict[str, V] = {}
        self.refused_count = 0

    def put(self, key: str, value: V) -> None:
        """Insert or replace."""
        if key not in self._rows and len(self._rows) >= ENTRIES_MAX:
            self.refused_count += 1
            return
        self._rows[key] = value

    def get(self, key: str) -> V | None:
        """The value, or None."""
        return self._rows.get(key)

    def remove(self, key: str) -> None:
        """Delete when present."""
        self._rows.pop(key, None)

    def items(self) -> list[tuple[str, V]]:
        """Everything, in key order."""
        return sorted(self._rows.items(), key=lambda item: item[0])

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(slots=True)
class NodeRecord:
    """What is known of a node; `heard_s` is when its lease was last written."""

    heard_s: float
    report: NodeReport | None = None
    lease: LeaseReport | None = None


@dataclass(slots=True)
class GatewayRecord:
    """What is known of a gateway."""

    heard_s: float
    report: GatewayReport


@dataclass(slots=True)
class Fleet:
    """Everything telemetry has been told. Times are seconds of a clock that never goes back;
    those of nodes are of one that stands while no node could be heard.
    """

    nodes: Table[NodeRecord] = field(default_factory=Table[NodeRecord])
    gateways: Table[GatewayRecord] = field(default_factory=Table[GatewayRecord])
    deployments: Table[DeploymentReport] = field(default_factory=Table[DeploymentReport])
    routes: Table[RouteReport] = field(default_factory=Table[RouteReport])
    placements: Table[frozenset[str]] = field(default_factory=Table[frozenset[str]])
    work: Table[CounterWindow] = field(default_factory=Table[CounterWindow])

    def node_reported(self, key: str, report: NodeReport, now_s: float) -> None:
        """A node wrote its status; only a lease proves that it lives."""
        record = self.nodes.get(key)
        if record is None:
            self.nodes.put(key, NodeRecord(now_s, report))
        else:
            record.report = report

    def node_lived(self, key: str, lease: LeaseReport, now_s: float) -> None:
        """A node wrote its lease."""
        record = self.nodes.get(key)
        if record is None:
            self.nodes.put(key, NodeRecord(now_s, None, lease))
        else:
            record.heard_s, record.lease = now_s, lease

    def gateway_reported(self, key: str, report: GatewayReport, now_s: float) -> None:
        """A gateway wrote its status; its counters' growth goes to the deployments."""
        record = self.gateways.get(key)
        # A gateway first seen now did its work before we watched; one that
        # restarted counts from 0 again.
        for deployment, load in report.loads.items() if record else ():
            before = record.report.loads.get(deployment) if record else None
            same_run = record is not None and record.report.run_id == report.run_id
            growth = load.counters.since(before.counters) if before and same_run else load.counters
            self._window(deployment, now_s).grow(growth, now_s)
        self.gateways.put(key, GatewayRecord(now_s, report))

    def _window(self, deployment: str, now_s: float) -> CounterWindow:
        window = self.work.get(deployment)
        if window is None:
            window = CounterWindow(now_s)
            self.work.put(deployment, window)
        return window

    def forget_silent(self, now_s: float, nodes_now_s: float) -> None:
        """Drop nodes and gateways that have not been heard of for very long."""
        for key, node in self.nodes.items():
            if nodes_now_s - node.heard_s > FORGET_AFTER_S:
                self.nodes.remove(key)
        for key, gateway in self.gateways.items():
            if now_s - gateway.heard_s > FORGET_AFTER_S:
                self.gateways.remove(key)
        for name, _ in self.work.items():  # noqa: PERF102  a copy, since rows are removed
            if self.deployments.get(name) is None:
                self.work.remove(name)
