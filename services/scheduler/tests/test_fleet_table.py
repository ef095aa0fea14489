"""The picture of the fleet through silence, restarts and outages of our own."""

from __future__ import annotations

import pytest
from busbar_contracts.node.v1.status_pb2 import NodeCapacity, NodeLease, NodeStatus, ReplicaStatus
from busbar_contracts.scheduler.v1.plan_pb2 import NodePlacement, ReplicaAssignment
from busbar_messaging.topology import PULSE, PULSE_INTERVAL
from busbar_scheduler.adapters.codec import replicas_of
from busbar_scheduler.adapters.fleet_table import FleetTable
from busbar_scheduler.domain.fleet import Health
from busbar_scheduler.domain.planning import plan
from tritonclient.grpc import service_pb2

NODE, OTHER = "r1.s1.n1", "r1.s1.n2"


def status(run: str = "run1", *, draining: bool = False) -> bytes:
    return NodeStatus(
        node=NODE,
        agent_run_id=run,
        capacity=NodeCapacity(memory_mib=1000, slots=10),
        draining=draining,
    ).SerializeToString()


def lease(run: str = "run1", *, ready: bool = True) -> bytes:
    return NodeLease(node=NODE, agent_run_id=run, ready=ready).SerializeToString()


class Ear:
    """Puts into a table what is heard, each under a number of its own."""

    def __init__(self, table: FleetTable, now: float = 100.0) -> None:
        self.table = table
        self.at = now
        self._revision = 1000

    def lease(self, now: float, value: bytes = b"", node: str = NODE) -> bool:
        self.at, self._revision = now, self._revision + 1
        return self.table.put("leases", node, value or lease(), self._revision, now)

    def pulses(self, until: float, *, leases_of: tuple[str, ...] = ()) -> None:
        """The pulse, and those nodes, each half second until then."""
        while self.at < until:
            at = min(until, self.at + PULSE_INTERVAL.total_seconds())
            for node in leases_of:
                self.lease(at, node=node)
            self.lease(at, b"", node=PULSE)

    def health(self, now: float, node: str = NODE) -> Health:
        """What a node is then, the pulse being heard meanwhile."""
        self.pulses(now)
        return health(self.table, now, node)


def health(table: FleetTable, now: float, node: str = NODE) -> Health:
    return next(one.health for one in table.snapshot(now).nodes if one.key == node)


@pytest.fixture
def table() -> FleetTable:
    made = FleetTable()
    made.put("leases", PULSE, b"", 1, 100.0)
    made.listening()
    made.put("nodes", NODE, status(), 1, 100.0)
    made.put("leases", NODE, lease(), 1, 100.5)
    return made


@pytest.fixture
def ear(table: FleetTable) -> Ear:
    return Ear(table, 100.5)


def test_a_silent_node_becomes_suspect_then_lost(table: FleetTable, ear: Ear) -> None:
    assert ear.health(104.4) is Health.OK
    assert table.until_next_change_s(104.4) == pytest.approx(0.1)
    assert ear.health(104.5) is Health.SUSPECT
    assert ear.health(160.5) is Health.LOST


def test_a_pulse_wakes_the_cycle_when_silence_has_become_too_long(
    table: FleetTable, ear: Ear
) -> None:
    ear.pulses(104.0)
    table.until_next_change_s(104.0)

    assert not ear.lease(104.4, node=PULSE)
    assert ear.lease(104.6, node=PULSE)


def test_a_node_of_which_nothing_is_new_is_the_same_object(table: FleetTable) -> None:
    (before,) = table.snapshot(101.0).nodes
    table.put("nodes", NODE, status(), 2, 101.5)
    (same,) = table.snapshot(102.0).nodes
    table.put("nodes", NODE, status(draining=True), 3, 102.5)
    (other,) = table.snapshot(103.0).nodes

    assert same is before
    assert other != before


def test_only_news_wakes_the_cycle(ear: Ear) -> None:
    assert not ear.lease(101.5)
    assert ear.lease(102.5, lease(ready=False))
    ear.pulses(107.0)
    assert ear.lease(107.0, lease(ready=False))  # it was suspect meanwhile


def test_a_report_of_an_earlier_run_is_not_trusted(table: FleetTable) -> None:
    table.put("leases", NODE, lease("run2"), 2, 101.0)
    assert health(table, 101.0) is Health.RESTARTING

    table.put("nodes", NODE, status("run2"), 2, 101.1)
    assert health(table, 101.1) is Health.OK


def test_silence_of_the_bus_makes_no_node_suspect(table: FleetTable, ear: Ear) -> None:
    assert health(table, 130.0) is Health.OK  # it counts only once something is heard again

    ear.lease(130.0, node=PULSE)
    assert health(table, 130.0) is Health.OK
    assert ear.health(136.9) is Health.OK
    assert ear.health(137.5) is Health.SUSPECT


def test_after_a_silence_of_the_bus_one_node_may_be_heard_long_after_another(
    table: FleetTable, ear: Ear
) -> None:
    table.put("nodes", OTHER, status(), 2, 100.6)
    ear.pulses(101.5, leases_of=(NODE, OTHER))

    ear.at = 110.0
    ear.pulses(114.0, leases_of=(OTHER,))

    assert health(table, 114.0) is Health.OK


def test_a_node_that_was_dead_before_the_bus_was_silent_stays_dead(
    table: FleetTable, ear: Ear
) -> None:
    assert ear.health(110.0) is Health.SUSPECT

    ear.lease(130.0, node=PULSE)

    assert health(table, 130.0) is Health.SUSPECT
    assert ear.health(183.4) is Health.SUSPECT
    assert ear.health(183.5) is Health.LOST  # 9.5 s before, and 50.5 s after the grace


def test_a_lease_that_is_read_again_is_no_sign_of_life(table: FleetTable, ear: Ear) -> None:
    ear.pulses(110.0)

    assert not table.put("leases", NODE, lease(), 1, 110.0)
    assert health(table, 110.0) is Health.SUSPECT


def test_a_vanished_entry_of_a_memory_bucket_means_nothing(table: FleetTable) -> None:
    assert not table.deleted("leases", NODE)
    assert not table.deleted("nodes", NODE)

    assert health(table, 101.0) is Health.OK


def test_a_placed_node_that_has_not_reported_keeps_its_place() -> None:
    table = FleetTable()
    table.listening()
    ear = Ear(table, 99.5)
    ear.pulses(100.0)
    placement = NodePlacement(node=NODE, replicas=[ReplicaAssignment(deployment="m")])
    table.put("placements", NODE, placement.SerializeToString(), 5, 100.0)

    assert ear.health(101.0) is Health.UNREPORTED
    assert not table.settled
    ear.pulses(104.0)
    assert table.settled
    assert ear.health(161.0) is Health.LOST


def test_the_picture_settles_as_soon_as_every_known_node_was_heard(table: FleetTable) -> None:
    table.put("leases", NODE, lease(), 2, 100.9)

    assert table.settled


def test_nothing_settles_while_nothing_is_heard() -> None:
    table = FleetTable()
    table.listening()
    placement = NodePlacement(node=NODE, replicas=[ReplicaAssignment(deployment="m")])
    table.put("placements", NODE, placement.SerializeToString(), 5, 100.0)
    table.snapshot(200.0)

    assert not table.settled


def test_draining_is_timed_from_its_first_report(table: FleetTable, ear: Ear) -> None:
    table.put("nodes", NODE, status(draining=True), 2, 101.0)
    for now in range(102, 163):
        ear.lease(float(now))
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
    table.listening()
    ear = Ear(table, 99.5)
    ear.pulses(100.0)
    for node in nodes:
        placement = NodePlacement(replicas=[ReplicaAssignment(deployment="m")])
        table.put(
            "nodes", node, NodeStatus(node=node, agent_run_id="1").SerializeToString(), 1, 100
        )
        table.put("placements", node, placement.SerializeToString(), 1, 100.0)

    def lost(now: float) -> int:
        ear.pulses(now)
        return sum(node.health is Health.LOST for node in table.snapshot(now).nodes)

    assert [lost(now) for now in (159.0, 161.0, 175.0, 176.0, 191.0, 206.0)] == [0, 1, 1, 2, 3, 4]


def test_a_dark_site_that_is_back_takes_new_replicas_by_and_by() -> None:
    table, keys = FleetTable(), [f"r1.s1.n{at}" for at in range(4)]

    def heard(now: float) -> None:
        for key in keys:
            table.put("nodes", key, status().replace(NODE.encode(), key.encode()), int(now), now)
            table.put("leases", key, lease().replace(NODE.encode(), key.encode()), int(now), now)

    heard(100.0)
    dark_for_s = 700
    for now in range(101, 101 + dark_for_s):  # somebody else is heard meanwhile
        table.put("leases", "r2.s2.n1", lease(), now, float(now))
        table.snapshot(float(now))
    heard(802.0)
    at_first = [one.takes_new for one in table.snapshot(802.5).nodes if one.key in keys]
    for now in range(803, 850):
        heard(float(now))
        table.snapshot(float(now))
    in_the_end = [one.takes_new for one in table.snapshot(850.0).nodes if one.key in keys]

    assert sorted(at_first) == [False, False, False, True]
    assert in_the_end == [True] * 4


def test_a_version_on_trial_describes_its_model_by_the_deployments_name() -> None:
    metadata = service_pb2.ModelMetadataResponse(name="m--canary", versions=["1"], platform="p")
    config = service_pb2.ModelConfigResponse()
    config.config.name, config.config.max_batch_size = "m--canary", 8
    said = (metadata.SerializeToString(), config.SerializeToString())
    reported = NodeStatus(
        replicas=[
            ReplicaStatus(deployment=name, model_metadata=said[0], model_config=said[1])
            for name in ("m--canary", "other")
        ]
    )

    tried, plain = replicas_of(reported)

    metadata.name = config.config.name = "m"
    assert service_pb2.ModelMetadataResponse.FromString(tried.model_metadata) == metadata
    assert service_pb2.ModelConfigResponse.FromString(tried.model_config) == config
    assert (plain.model_metadata, plain.model_config) == said
