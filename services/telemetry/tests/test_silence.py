"""What is shown of nodes while they, or the bus, are silent."""

from __future__ import annotations

from typing import cast

import pytest
from busbar_contracts.node.v1.status_pb2 import NodeLease
from busbar_messaging import topology
from busbar_messaging.bucket_changes import Put
from busbar_telemetry.adapters.buckets import FleetWatch
from busbar_telemetry.domain import rollup
from busbar_telemetry.domain.fleet import Fleet
from nats.aio.client import Client

NODE = "r1.s1.n1"


class Seen:
    """Telemetry, the bucket of leases as it comes to it, and a clock."""

    def __init__(self) -> None:
        self.at = 50.0
        self.fleet = Fleet()
        self.watch = FleetWatch(cast("Client", None), self.fleet, lambda: self.at)

    def lease(self) -> None:
        lease = NodeLease(node=NODE, agent_run_id="1", ready=True)
        self.watch.take(topology.LEASES.name, Put(NODE, lease.SerializeToString(), 1))

    def pulses(self, until: float) -> None:
        while self.at < until:
            self.at += topology.PULSE_INTERVAL.total_seconds()
            self.watch.take(topology.LEASES.name, Put(topology.PULSE, b"", 1))

    @property
    def state(self) -> str:
        [node] = rollup.node_views(self.fleet, self.watch.hearing.now_s)
        return node.state


@pytest.fixture
def seen() -> Seen:
    made = Seen()
    made.pulses(51.0)
    made.lease()
    return made


def test_a_node_that_is_silent_while_the_pulse_is_heard_is_suspect_then_lost(seen: Seen) -> None:
    states = [seen.state]
    for until in (54.0, 56.0, 112.0):
        seen.pulses(until)
        states.append(seen.state)

    assert states == ["waiting", "waiting", "suspect", "lost"]
    assert seen.watch.malformed_count == 0


def test_while_nothing_is_heard_no_node_is_suspect_and_people_are_told(seen: Seen) -> None:
    hears = [seen.watch.hears]
    seen.at = 70.0
    hears.append(seen.watch.hears)
    during = seen.state
    seen.pulses(71.0)
    hears.append(seen.watch.hears)

    assert hears == [True, False, True]
    assert (during, seen.state) == ("waiting", "waiting")


def test_before_anything_was_ever_heard_nothing_is_amiss() -> None:
    assert Seen().watch.hears
