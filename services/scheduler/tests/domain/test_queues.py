"""Which queues are wanted, and which names have been known for too long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from busbar_scheduler.domain.fleet import Assignment, Deployment, Health, Node, Snapshot
from busbar_scheduler.domain.health import Signs, judge
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.publishing import Published
from busbar_scheduler.domain.queues import WantedQueues, wanted_queues

HELD = (Assignment("m", "sha256:00", 1),)
MANIFEST = Manifest("m", "1", Task.TENSOR, slots=1, memory_mib=1, price_class="small")
DECLARED = Deployment("m", "sha256:00", MANIFEST, replicas=1)


def node(key: str, *, reads: bool = True, health: Health = Health.OK) -> Node:
    region, site, _ = key.split(".")
    return Node(key, region, site, 1, 1, health=health, reads_queue_names=reads)


def wanted(nodes: list[Node], holders: list[str], told: dict[str, str]) -> WantedQueues:
    """With `holders` of "m" from now on, and the name that each node was told before."""
    placements = {one.key: HELD if one.key in holders else () for one in nodes}
    published = Published(queues={key: {"m": name} for key, name in told.items()})
    return wanted_queues(Snapshot(1, (DECLARED,), tuple(nodes)), placements, published)


def test_a_name_outlives_its_use_when_the_last_node_of_a_site_gives_the_deployment_up() -> None:
    nodes = [node("r1.s1.n1"), node("r1.s1.n2"), node("r1.s2.n1")]
    told = {one.key: "a" for one in nodes}

    assert not wanted(nodes, ["r1.s1.n2", "r1.s2.n1"], told).outlived
    assert wanted(nodes, ["r1.s1.n1", "r1.s1.n2"], told).outlived == {("r1", "a")}


def test_a_node_that_is_forgotten_knew_the_name_too() -> None:
    found = wanted([node("r1.s1.n1")], ["r1.s1.n1"], {"r1.s1.n1": "a", "r1.s2.n1": "a"})

    assert found.outlived == {("r1", "a")}


def test_a_site_of_another_region_has_another_queue() -> None:
    nodes = [node("r1.s1.n1"), node("r2.s1.n1")]
    found = wanted(nodes, ["r1.s1.n1"], {"r1.s1.n1": "a", "r2.s1.n1": "b"})

    assert found.held == {("r1", "m")}
    assert found.outlived == {("r2", "b")}


def test_a_queue_is_called_by_the_deployment_while_a_holder_knows_no_other_name() -> None:
    nodes = [node("r1.s1.n1"), node("r1.s2.n1", reads=False), node("r2.s1.n1")]

    assert wanted(nodes, ["r1.s1.n1", "r2.s1.n1"], {}).plain == frozenset()
    assert wanted(nodes, [one.key for one in nodes], {}).plain == {("r1", "m")}


SILENT = Signs(silent_s=30.0, draining_s=None, ready=True, reported=True, same_run=True)


@pytest.mark.parametrize(
    "signs", [SILENT, replace(SILENT, draining_s=70.0)], ids=["serving", "drained-before"]
)
def test_a_region_of_which_nothing_is_heard_is_left_alone(signs: Signs) -> None:
    silent = judge(signs, timedelta(seconds=4))
    nodes = [node("r1.s1.n1"), node("r2.s1.n1", health=silent)]
    found = wanted(nodes, ["r1.s1.n1"], {"r2.s1.n1": "b"})

    assert found.regions == {"r1"}
    assert found.outlived == found.told == {("r2", "b")}
