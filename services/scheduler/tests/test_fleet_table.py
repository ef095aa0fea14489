"""The picture of the fleet through silence, restarts and outages of our own."""

from __future__ import annotations

import pytest
from busbar_contracts.node.v1.status_pb2 import NodeCapacity, NodeLease, NodeStatus
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement, ReplicaAssignment
from busbar_scheduler.adapters.fleet_table import FleetTable
from busbar_scheduler.domain.fleet import Health
from busbar_scheduler.domain.planning import plan

NODE = "r1.s1.n1"


def status(run: str = "run1", *, draining: bool = False) -> bytes:
    return NodeStatus(
        node=NODE,
        agent_run_id=run,
        capacity=NodeCapacity(memory_mib=1000, slots=10),
        draining=draining,
    ).SerializeToString()


def lease(run: str = "run1", *, ready: bool = True) -> bytes:
    return NodeLease(node=NODE, agent_run_id=run, ready=ready).SerializeToString()


def health(table: FleetTable, now: float) -> Health:
    (one,) = table.snapshot(now).nodes
    return one.health


@pytest.fixture
def table() -> FleetTable:
    made = FleetTable()
    made.listening(100.0)
    made.put("nodes", NODE, status(), 1, 100.0)
    made.put("leases", NODE, lease(), 1, 100.5)
    return made


def test_a_silent_node_becomes_suspect_then_lost(table: FleetTable) -> None:
    assert health(table, 104.4) is Health.OK
    assert table.until_next_change_s(104.4) == pytest.approx(0.1)
    assert health(table, 104.5) is Health.SUSPECT
    assert health(table, 160.5) is Health.LOST


def test_a_node_of_which_nothing_is_new_is_the_same_object(table: FleetTable) -> None:
    (before,) = table.snapshot(101.0).nodes
    table.put("nodes", NODE, status(), 2, 101.5)
    (same,) = table.snapshot(102.0).nodes
    table.put("nodes", NODE, status(draining=True), 3, 102.5)
    (other,) = table.snapshot(103.0).nodes

    assert same is before
    assert other != before


def test_only_news_wakes_the_cycle(table: FleetTable) -> None:
    assert not table.put("leases", NODE, lease(), 2, 101.5)
    assert table.put("leases", NODE, lease(ready=False), 3, 102.5)
    assert table.put("leases", NODE, lease(ready=False), 4, 107.0)  # it was suspect meanwhile


def test_a_report_of_an_earlier_run_is_not_trusted(table: FleetTable) -> None:
    table.put("leases", NODE, lease("run2"), 2, 101.0)
    assert health(table, 101.0) is Health.RESTARTING

    table.put("nodes", NODE, status("run2"), 2, 101.1)
    assert health(table, 101.1) is Health.OK


def test_an_outage_of_our_own_makes_no_node_suspect(table: FleetTable) -> None:
    table.deaf(101.0)
    table.listening(130.0)

    assert health(table, 130.0) is Health.OK
    assert health(table, 134.0) is Health.SUSPECT


def test_a_node_that_was_dead_before_our_outage_stays_dead(table: FleetTable) -> None:
    assert health(table, 110.0) is Health.SUSPECT

    table.deaf(110.0)
    table.listening(130.0)

    assert health(table, 130.0) is Health.SUSPECT


def test_a_vanished_entry_of_a_memory_bucket_means_nothing(table: FleetTable) -> None:
    assert not table.deleted("leases", NODE)
    assert not table.deleted("nodes", NODE)

    assert health(table, 101.0) is Health.OK


def test_a_placed_node_that_has_not_reported_keeps_its_place() -> None:
    table = FleetTable()
    table.listening(100.0)
    placement = NodePlacement(node=NODE, replicas=[ReplicaAssignment(deployment="m")])
    table.put("placements", NODE, placement.SerializeToString(), 5, 100.0)

    assert health(table, 101.0) is Health.UNREPORTED
    assert health(table, 161.0) is Health.LOST
    assert not table.settled(101.0)
    assert table.settled(104.0)


def test_the_picture_settles_as_soon_as_every_known_node_was_heard(table: FleetTable) -> None:
    table.put("leases", NODE, lease(), 2, 100.9)

    assert table.settled(101.0)


def test_draining_is_timed_from_its_first_report(table: FleetTable) -> None:
    table.put("nodes", NODE, status(draining=True), 2, 101.0)
    for now in range(102, 163):
        table.put("leases", NODE, lease(), 3, float(now))
        table.put("nodes", NODE, status(draining=True), 3, float(now))

    assert health(table, 160.0) is Health.DRAINING
    assert health(table, 162.0) is Health.EVICTED


def test_an_older_echo_of_our_own_write_is_ignored(table: FleetTable) -> None:
    new = NodePlacement(node=NODE, fencing_token=2).SerializeToString()
    old = NodePlacement(node=NODE, fencing_token=1).SerializeToString()
    table.put("placements", NODE, new, 9, 100.0)

    assert not table.put("placements", NODE, old, 8, 100.0)
    assert table.published().placement_stamps[NODE].fencing_token == 2


def test_an_entry_that_cannot_be_read_is_kept_track_of_and_harms_nothing(table: FleetTable) -> None:
    table.put("routes", "m", b"\xff\xff", 3, 100.0)
    table.put("nodes", "not-a-node", status(), 3, 100.0)
    table.put("nodes", NODE, b"\xff\xff", 4, 100.0)

    assert table.revision_of("routes", "m") == 3
    assert table.published().routes == {}
    assert [one.key for one in table.snapshot(101.0).nodes] == [NODE]


def test_a_node_that_claims_impossible_memory_is_taken_at_its_last_good_word(
    table: FleetTable,
) -> None:
    absurd = NodeCapacity(memory_mib=2**64 - 1, slots=10)
    claim = NodeStatus(node=NODE, agent_run_id="run1", capacity=absurd).SerializeToString()
    table.put("nodes", NODE, claim, 2, 101.0)
    other = NodeStatus(node="r1.s1.n2", agent_run_id="x", capacity=absurd).SerializeToString()
    table.put("nodes", "r1.s1.n2", other, 3, 101.0)

    assert [(one.key, one.memory_mib) for one in table.snapshot(101.0).nodes] == [(NODE, 1000)]
    assert plan(table.snapshot(101.0)).placements == {NODE: ()}


def test_of_a_site_that_is_gone_not_all_nodes_are_given_up_at_once() -> None:
    table, nodes = FleetTable(), [f"r1.s1.n{at}" for at in range(4)]
    table.listening(100.0)
    for node in nodes:
        placement = NodePlacement(replicas=[ReplicaAssignment(deployment="m")])
        table.put(
            "nodes", node, NodeStatus(node=node, agent_run_id="1").SerializeToString(), 1, 100
        )
        table.put("placements", node, placement.SerializeToString(), 1, 100.0)

    def lost(now: float) -> int:
        return sum(node.health is Health.LOST for node in table.snapshot(now).nodes)

    assert [lost(now) for now in (159.0, 161.0, 175.0, 176.0, 191.0, 206.0)] == [0, 1, 1, 2, 3, 4]
