"""The fleet's roll-ups: pure functions of reports and time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from busbar_telemetry.domain import fleet as fleet_module
from busbar_telemetry.domain import rollup
from busbar_telemetry.domain.events import Charges, Event, RecentEvents
from busbar_telemetry.domain.fleet import Fleet, Table
from busbar_telemetry.domain.rates import Counters
from busbar_telemetry.domain.reports import (
    DeploymentReport,
    GatewayReport,
    LeaseReport,
    LoadReport,
    NodeReport,
    ReplicaReport,
    RouteReport,
    TargetReport,
)

READY = ReplicaReport("embed", "sha256:aa", "ready", "", 4)
NODE = NodeReport("run1", "0.1.0", 8192, 8, (), False, "ready", "", 0, False, (READY,))
LEASE = LeaseReport(ready=True, in_flight=2, finished_count=10, failed_count=1)
EMBED = DeploymentReport("minilm", "1", "sha256:aa", "embed", "embed-small", 2, 4, (), ())


def seen(*keys: str, report: NodeReport = NODE, lease: LeaseReport = LEASE) -> Fleet:
    fleet = Fleet()
    for key in keys:
        fleet.node_reported(key, report, 0.0)
        fleet.node_lived(key, lease, 0.0)
    return fleet


@pytest.mark.parametrize(
    ("report", "lease", "age_s", "state"),
    [
        (NODE, LEASE, 0.0, "ok"),
        (NODE, LEASE, 3.9, "ok"),
        (NODE, LEASE, 4.1, "suspect"),
        (NODE, LEASE, 60.1, "lost"),
        (replace(NODE, draining=True), LEASE, 0.0, "draining"),
        (replace(NODE, draining=True), LEASE, 10.0, "suspect"),
        (replace(NODE, triton_state="hung"), LEASE, 0.0, "waiting"),
        (NODE, replace(LEASE, ready=False), 0.0, "waiting"),
    ],
)
def test_a_nodes_state(report: NodeReport, lease: LeaseReport, age_s: float, state: str) -> None:
    [node] = rollup.node_views(seen("r1.s1.n1", report=report, lease=lease), age_s)

    assert node.state == state
    assert bool(node.reason) == (state not in {"ok", "draining"})
    assert node.ready_slots == (4 if state == "ok" else 0)


def test_a_status_alone_does_not_prove_life() -> None:
    fleet = seen("r1.s1.n1")
    fleet.node_reported("r1.s1.n1", NODE, 50.0)

    [node] = rollup.node_views(fleet, 50.0)
    assert node.state == "suspect"


def test_what_a_silent_node_holds_is_not_known() -> None:
    fleet = seen("r1.s1.n1")
    fleet.placements.put("r1.s1.n1", frozenset({"embed", "chat"}))
    found = [rollup.node_views(fleet, age_s)[0] for age_s in (3.9, 4.1, 60.1)]

    assert [[(r.deployment, r.state) for r in node.replicas] for node in found] == [
        [("chat", "missing"), ("embed", "ready")],
        [("chat", "unknown"), ("embed", "unknown")],
        [("chat", "unknown"), ("embed", "unknown")],
    ]


def test_what_an_agent_reported_says_nothing_of_the_one_that_took_its_place() -> None:
    fleet = seen("r1.s1.n1", lease=replace(LEASE, agent_run_id="run2"))
    [before] = rollup.node_views(fleet, 0.0)
    fleet.node_reported("r1.s1.n1", replace(NODE, agent_run_id="run2"), 1.0)
    [after] = rollup.node_views(fleet, 1.0)

    assert (before.state, before.reason) == ("waiting", "its agent has not reported since it began")
    assert (before.ready_slots, [one.state for one in before.replicas]) == (0, ["unknown"])
    assert (after.state, [one.state for one in after.replicas]) == ("ok", ["ready"])


def test_capacity_counts_only_nodes_that_are_heard_of() -> None:
    fleet = seen("r1.s1.n1", "r1.s1.n2", "r1.s2.n1", "r2.s1.n1")
    for alive in ("r1.s1.n1", "r2.s1.n1"):
        fleet.node_lived(alive, LEASE, 100.0)
    nodes = rollup.node_views(fleet, 100.0)

    regions = {region.region: region for region in rollup.region_views(nodes)}
    assert [site.site for site in regions["r1"].sites] == ["s1", "s2"]
    assert regions["r1"].sites[0].nodes == ["r1.s1.n1", "r1.s1.n2"]
    assert (regions["r1"].totals.nodes, regions["r1"].totals.nodes_lost) == (3, 2)
    assert (regions["r1"].totals.slots, regions["r1"].totals.in_flight) == (8, 2)
    total = rollup.totals(nodes)
    assert total.slots == sum(region.totals.slots for region in regions.values())
    assert total.nodes_ok == 2


def test_a_wanted_model_that_is_not_reported_is_missing() -> None:
    fleet = seen("r1.s1.n1")
    fleet.placements.put("r1.s1.n1", frozenset({"chat"}))

    [node] = rollup.node_views(fleet, 0.0)
    assert [(r.deployment, r.state, r.wanted) for r in node.replicas] == [
        ("chat", "missing", True),
        ("embed", "ready", False),
    ]


@pytest.mark.parametrize(
    ("ready", "wanted", "most", "state"),
    [
        (0, 2, 0, "unready"),
        (1, 2, 0, "partial"),
        (2, 2, 0, "ready"),
        (3, 2, 4, "ready"),
        (0, 0, 0, "stopped"),
        (0, 0, 2, "asleep"),
        (1, 0, 2, "ready"),
    ],
)
def test_a_deployments_state(ready: int, wanted: int, most: int, state: str) -> None:
    fleet = Fleet()
    fleet.deployments.put("embed", replace(EMBED, replicas=wanted, max_replicas=most))
    fleet.routes.put("embed", RouteReport((TargetReport("r1", 4 * ready, ready),), ""))

    [deployment] = rollup.deployment_views(fleet, 0.0)
    assert deployment.state == state
    assert deployment.ready_slots == 4 * ready


def gateway(run_id: str, completed: int, in_flight: int = 1, queued: int = 2) -> GatewayReport:
    load = LoadReport(in_flight, queued, Counters(completed=completed))
    return GatewayReport("r1", run_id, {"embed": load})


def test_load_adds_up_over_gateways_that_are_heard_of() -> None:
    fleet = Fleet()
    fleet.deployments.put("embed", EMBED)
    fleet.gateway_reported("g1", gateway("a", 0), 0.0)
    fleet.gateway_reported("g2", gateway("b", 0), 99.0)
    fleet.gateway_reported("g3", gateway("c", 0, in_flight=5), 100.0)

    [deployment] = rollup.deployment_views(fleet, 100.0)
    assert (deployment.in_flight, deployment.queued) == (6, 4)
    assert [view.state for view in rollup.gateway_views(fleet, 100.0)] == ["lost", "ok", "ok"]


def test_growth_counts_through_a_gateways_restart_but_not_from_before_we_watched() -> None:
    fleet = Fleet()
    fleet.deployments.put("embed", EMBED)
    fleet.gateway_reported("g1", gateway("a", 5_000), 0.0)
    fleet.gateway_reported("g1", gateway("a", 5_010), 1.0)
    fleet.gateway_reported("g1", gateway("b", 20), 2.0)

    window = fleet.work.get("embed")
    assert window is not None
    assert window.total.completed == 30


def test_the_silent_are_forgotten_and_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = seen("r1.s1.n1", "r1.s1.n2")
    fleet.gateway_reported("g1", gateway("a", 1), 0.0)
    fleet.node_lived("r1.s1.n2", LEASE, 800.0)
    fleet.forget_silent(1000.0, 1000.0)

    assert [key for key, _ in fleet.nodes.items()] == ["r1.s1.n2"]
    assert len(fleet.gateways) == 0
    monkeypatch.setattr(fleet_module, "ENTRIES_MAX", 2)
    table = Table[int]()
    for key in ("a", "b", "c", "a"):
        table.put(key, 1)
    assert len(table) == 2
    assert table.refused_count == 1


def test_events_are_bounded_newest_first_and_repeats_are_folded() -> None:
    events = RecentEvents(capacity=3)
    texts = ["a", "a", "b", "b", "b", "c", "d", "d"]
    for number, text in enumerate([*texts, "d"], start=1):
        events.add(Event(min(number, len(texts)), 0, "scheduler", "plan", "info", "", text))

    assert [(e.text, e.repeats) for e in events.newest_first()] == [("d", 2), ("c", 1), ("b", 3)]


def test_charges_that_are_delivered_again_count_once() -> None:
    events = RecentEvents()
    for sequence in (7, 7, 8):
        events.charged(sequence, Charges(2, {"USD": 5}))

    assert (events.charges_count, events.charged_nanos) == (4, {"USD": 10})
