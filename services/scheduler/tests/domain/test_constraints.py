"""What may never happen, and what is worth it: limits, survival, power prices, replanning."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from busbar_scheduler.domain.arrays import Fleet
from busbar_scheduler.domain.decisions import Verdict
from busbar_scheduler.domain.explaining import emptied, hindrances, impossible
from busbar_scheduler.domain.fleet import (
    Demand,
    Deployment,
    Health,
    Node,
    Order,
    Replica,
    ReplicaState,
    Site,
    Snapshot,
)
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.packing import Packing
from busbar_scheduler.domain.planning import Plan, plan, replan
from busbar_scheduler.domain.progress import progress_of
from small_fleets import held_by, small_fleet

DIGEST = "sha256:" + "a" * 64
MODEL = Manifest("m", "1", Task.CHAT, 4, 100, "default", power_w=300)
CHEAP, DEAR = 40_000_000, 400_000_000


def model(replicas: int = 1, **changes: Any) -> Deployment:
    return replace(Deployment("m", DIGEST, MODEL, replicas), **changes)


def nodes(*keys: str, **changes: Any) -> tuple[Node, ...]:
    made = [Node(key, *key.split(".")[:2], memory_mib=1000, slots=100) for key in keys]
    return tuple(replace(node, **changes) for node in made)


def where(made: Plan) -> set[str]:
    return held_by(made).get("m", set())


def carried_out(snapshot: Snapshot, made: Plan) -> Snapshot:
    """The fleet once every node did what it was told."""
    by_name = {one.name: one for one in snapshot.deployments}
    fleet = tuple(
        replace(
            node,
            replicas=tuple(
                Replica(one.deployment, one.digest, ReplicaState.READY, one.slots)
                for one in made.placements.get(node.key, ())
                if one.deployment in by_name
            ),
        )
        for node in snapshot.nodes
    )
    return replace(snapshot, nodes=fleet, placements=made.placements, routes=made.routes)


def breaches(snapshot: Snapshot, made: Plan) -> list[str]:
    """Every limit that a plan exceeds."""
    needs = {one.name: one for one in snapshot.deployments}
    found, site_w, sites, feeders = list[str](), Counter[str](), Counter[Any](), Counter[Any]()
    for node in snapshot.nodes:
        there = [needs[one.deployment] for one in made.placements.get(node.key, ())]
        power_w = sum(one.manifest.power_w for one in there)
        site_w[node.site_key] += power_w
        if sum(one.manifest.memory_mib for one in there) > node.memory_mib:
            found.append(f"memory of {node.key}")
        if sum(one.manifest.slots for one in there) > node.slots:
            found.append(f"slots of {node.key}")
        if node.power_cap_w and power_w > node.power_cap_w:
            found.append(f"power of {node.key}")
        found += [f"{one.name} on {node.key}" for one in there if not one.may_run_on(node)]
        site = snapshot.site_of(node)
        for one in there:
            if node.key in held_by(made).get(one.name, set()):
                sites[one.name, node.site_key] += 1
                feeders[one.name, node.feeder or site.feeder or site.key] += 1
    found += [
        f"power of {key}"
        for key, power_w in site_w.items()
        if (cap_w := snapshot.sites[key].power_cap_w) and power_w > cap_w
    ]
    found += [f"{at}" for at, n in sites.items() if 0 < needs[at[0]].per_site_max < n]
    found += [f"{at}" for at, n in feeders.items() if 0 < needs[at[0]].per_feeder_max < n]
    for one in snapshot.deployments:
        here = [count for (name, _), count in sites.items() if name == one.name]
        left = sum(here) - max(here, default=0) if one.survives_site_loss else sum(here)
        if made.short.get(one.name, 0) != max(0, one.replicas - left):
            found.append(f"promise of {one.name}: {left} of {one.replicas} and not said so")
    return found


def happened(random: Random, snapshot: Snapshot) -> Snapshot:
    """Something that changes a fleet."""
    fleet, wanted = list(snapshot.nodes), list(snapshot.deployments)
    at, which = random.randrange(len(fleet)), random.randrange(len(wanted))
    sites, place = dict(snapshot.sites), fleet[at].site_key
    match random.randrange(8):
        case 0:
            fleet[at] = replace(fleet[at], health=random.choice(list(Health)[:-1]))
        case 1:
            fleet[at] = replace(fleet[at], order=random.choice(list(Order)))
        case 2:
            wanted[which] = replace(wanted[which], replicas=random.randint(0, 4))
        case 3:
            fleet[at] = replace(fleet[at], memory_mib=fleet[at].memory_mib // 2, slots=8)
        case 4:
            sites[place] = replace(sites[place], power_cap_w=random.choice((0, 700, 1_500)))
        case 5:
            sites[place] = replace(sites[place], order=random.choice(list(Order)))
        case 6:
            sites[place] = replace(sites[place], energy_nanos_per_kwh=random.randrange(10**8))
        case _:
            del fleet[at]
    return replace(snapshot, nodes=tuple(fleet), deployments=tuple(wanted), sites=sites)


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_no_limit_is_exceeded_whatever_happens(start: int) -> None:
    for seed in range(start, start + 10):
        random, snapshot = Random(seed), small_fleet(seed)
        made = plan(snapshot)
        assert breaches(snapshot, made) == []
        for _ in range(4):
            snapshot = happened(random, carried_out(snapshot, made))
            if not snapshot.nodes:
                break
            made = replan(made, snapshot)
            assert breaches(snapshot, made) == []


def test_replanning_what_did_not_change_changes_nothing() -> None:
    for seed in range(20):
        snapshot = small_fleet(seed)
        made = plan(snapshot)
        standing = carried_out(snapshot, made)
        again = replan(plan(standing), standing)
        assert again.placements == plan(standing).placements


def test_replanning_counts_as_who_looks_at_every_node() -> None:
    carried_over = 0
    for seed in range(10):
        random, snapshot = Random(seed), small_fleet(seed)
        made = plan(snapshot)
        for _ in range(4):
            known = {node.key: node for node in snapshot.nodes}
            snapshot = happened(random, carried_out(snapshot, made))
            # What is as it was is the same object, as where a fleet is watched.
            same = [known[one.key] if known[one.key] == one else one for one in snapshot.nodes]
            snapshot = replace(snapshot, nodes=tuple(same))
            if not snapshot.nodes:
                break
            then, made = made, replan(made, snapshot)
            carried_over += made.packing.fleet.same_nodes(then.packing.fleet)
            assert counted(made.packing) == counted_anew(snapshot, made.packing)

    assert carried_over > 10


def counted(packing: Packing) -> list[Any]:
    fleet = packing.fleet
    numbers = (packing.memory_mib, packing.slots, packing.power_w, packing.site_power_w)
    return [
        *(one.tolist() for one in (*numbers, fleet.takes_new, fleet.keeps, fleet.site)),
        {digest: set(at) for digest, at in fleet.cached.items() if at},
        {name: at for name, at in fleet.before.items() if at},
        [dict(sorted(one.items())) for one in packing.on_node],
    ]


def counted_anew(snapshot: Snapshot, packing: Packing) -> list[Any]:
    found = Packing(Fleet.of(replace(snapshot, placements=packing.fleet.placements)))
    for deployment in snapshot.deployments:
        for at in packing.held(deployment.name):
            found.take(at, deployment)
    return counted(found)


TWO_SITES = nodes("r1.s1.n1", "r1.s1.n2", "r1.s1.n3", "r1.s2.n1", "r1.s2.n2")


@pytest.mark.parametrize(
    ("deployment", "most_at_site", "replicas"),
    [
        (model(2, survives_site_loss=True), 2, 4),
        (model(1, survives_site_loss=True), 1, 2),
        (model(4, per_site_max=2), 2, 4),
        (model(5), 3, 5),
    ],
)
def test_replicas_are_spread_as_promised(
    deployment: Deployment, most_at_site: int, replicas: int
) -> None:
    made = plan(Snapshot(1, (deployment,), TWO_SITES))
    at_site = Counter(key.rsplit(".", 1)[0] for key in where(made))

    assert not made.short
    assert max(at_site.values()) == most_at_site
    assert at_site.total() == replicas


def test_spares_stand_at_as_many_sites_as_there_are() -> None:
    fleet = nodes(*(f"r1.s{at}.n1" for at in range(4)))
    made = plan(Snapshot(1, (model(3, survives_site_loss=True),), fleet))

    assert len(where(made)) == 4  # one spare, not three


def test_replicas_on_one_feeder_are_limited() -> None:
    fleet = (*nodes("r1.s1.n1", "r1.s2.n1", feeder="north"), *nodes("r1.s3.n1"))
    made = plan(Snapshot(1, (model(3, per_feeder_max=1),), fleet))

    assert len(where(made)) == 2
    assert "r1.s3.n1" in where(made)
    assert made.short == {"m": 1}
    assert "as many on its feeder" in made.decisions[0].reason


@pytest.mark.parametrize("limit", ["per_site_max", "per_feeder_max"])
@pytest.mark.parametrize(
    "elsewhere", [True, False], ids=["there is room elsewhere", "there is none"]
)
def test_what_a_new_limit_forbids_serves_on_only_for_what_replaces_it(
    limit: str, *, elsewhere: bool
) -> None:
    fleet, sites = nodes("r1.s1.n1", "r1.s1.n2"), {key: Site(key, 0) for key in ("r1.s1", "r1.s2")}
    standing = Snapshot(1, (model(2),), fleet, sites=sites)
    standing = carried_out(standing, plan(standing))
    limited = model(2, **{limit: 1})
    more = nodes("r1.s2.n1") if elsewhere else ()
    told = replace(standing, deployments=(limited,), nodes=(*standing.nodes, *more))
    made = plan(told)

    verdicts = sorted(str(one.verdict) for one in made.decisions)
    assert verdicts == sorted(
        ["kept", "leaving", "placed"] if elsewhere else ["kept", "removed", "unplaced"]
    )
    progress = progress_of(limited, made, emptied(told))
    assert progress.status == ("progressing" if elsewhere else "unplaceable")
    assert ("only 1 could hold it with 1 at most" in progress.reason) is not elsewhere
    after = carried_out(told, made)
    done = plan(after)
    assert (progress_of(limited, done, emptied(after)).status == "ready") is elsewhere
    assert not breaches(after, done)


def test_what_too_few_nodes_could_hold_says_what_the_others_lack() -> None:
    fleet = nodes("r1.s1.n1", "r1.s2.n1", "r1.s3.n1")
    fleet = (*fleet[:2], replace(fleet[2], health=Health.SUSPECT))
    sites = {"r1.s1": Site("r1.s1", 0), "r1.s2": Site("r1.s2", 299), "r1.s3": Site("r1.s3", 0)}
    never = impossible(model(3), emptied(Snapshot(1, (model(3),), fleet, sites=sites)))

    assert never.endswith(
        "only 1 could hold it (r1/s2/n1: 299 of 300 W free at its site; r1/s3/n1: is suspect)"
    )


@pytest.mark.parametrize(
    ("fleet", "cap_w", "reason"),
    [
        (nodes("r1.s1.n1", power_cap_w=299), 0, "299 of 300 W free"),
        (nodes("r1.s1.n1"), 299, "299 of 300 W free at its site"),
        (nodes("r1.s1.n1", order=Order.CORDON), 0, "is cordoned"),
        (nodes("r1.s1.n1", order=Order.DRAIN), 0, "is drained"),
    ],
)
def test_what_has_no_place_says_what_it_lacks(
    fleet: tuple[Node, ...], cap_w: int, reason: str
) -> None:
    made = plan(Snapshot(1, (model(),), fleet, sites={"r1.s1": Site("r1.s1", cap_w)}))

    assert made.short == {"m": 1}
    assert reason in made.decisions[0].reason


def test_room_is_made_by_moving_what_fits_elsewhere() -> None:
    small = replace(model(), name="small", manifest=replace(MODEL, memory_mib=600))
    large = replace(model(), name="m", manifest=replace(MODEL, memory_mib=1000))
    fleet = (*nodes("r1.s1.big"), *nodes("r1.s1.little", memory_mib=600))
    there = plan(Snapshot(1, (small,), fleet[:1]))
    made = plan(Snapshot(1, (small, large), fleet, placements=there.placements))

    assert held_by(made) == {"m": {"r1.s1.big"}, "small": {"r1.s1.little"}}


def priced(cheap: int, dear: int) -> dict[str, Site]:
    return {"r1.s1": Site("r1.s1", 0, dear), "r1.s2": Site("r1.s2", 0, cheap)}


@pytest.mark.parametrize(("cheap", "moves"), [(CHEAP, True), (int(DEAR * 0.95), False)])
def test_what_runs_moves_for_power_only_when_it_pays(cheap: int, moves: bool) -> None:
    fleet = nodes("r1.s1.n1", "r1.s2.n1")
    first = Snapshot(1, (model(),), fleet, sites=priced(DEAR, CHEAP))
    standing = carried_out(first, plan(first))
    assert where(plan(first)) == {"r1.s1.n1"}
    made = plan(replace(standing, sites=priced(cheap, DEAR)))

    assert where(made) == ({"r1.s2.n1"} if moves else {"r1.s1.n1"})
    # What serves goes on serving until what replaces it does.
    verdicts = {one.node: one.verdict for one in made.decisions}
    assert verdicts["r1.s1.n1"] is (Verdict.LEAVING if moves else Verdict.KEPT)


def test_weights_that_are_there_already_decide_between_equals() -> None:
    cached = Replica("other", DIGEST, ReplicaState.READY, 4)
    fleet = (*nodes("r1.s1.n1"), *nodes("r1.s1.n2", replicas=(cached,)))

    large = model(manifest=replace(MODEL, memory_mib=900))

    assert where(plan(Snapshot(1, (large,), fleet))) == {"r1.s1.n2"}


def test_what_earns_more_gets_the_room() -> None:
    poor = replace(model(0, max_replicas=2, value_nanos_per_request=1_000), name="poor")
    rich = model(0, max_replicas=2, value_nanos_per_request=900_000)
    demand = Demand(2, requests_per_h=2_000, requests_per_replica_h=1_000)
    fleet = nodes("r1.s1.n1", "r1.s1.n2", slots=4)
    before = plan(Snapshot(1, (poor,), fleet, demands={"poor": demand}))
    made = plan(
        Snapshot(1, (poor, rich), fleet, before.placements, demands={"poor": demand, "m": demand})
    )

    assert len(held_by(before)["poor"]) == 2
    assert where(made) == {"r1.s1.n1", "r1.s1.n2"}


def test_a_replica_that_costs_more_than_it_brings_in_is_not_started() -> None:
    deployment = model(1, max_replicas=3, value_nanos_per_request=10)
    demand = Demand(3, requests_per_h=3_000, requests_per_replica_h=1_000)
    fleet = nodes("r1.s1.n1", "r1.s1.n2", "r1.s1.n3")
    made = plan(Snapshot(1, (deployment,), fleet, sites=priced(CHEAP, DEAR), demands={"m": demand}))

    assert len(where(made)) == 1  # what is promised runs whatever it costs
    assert "cost more than it brings in" in made.decisions[0].reason


@pytest.mark.parametrize("order", [Order.DRAIN, Order.VACATE])
def test_a_drained_node_serves_until_its_replacement_does_or_its_grace_is_over(
    order: Order,
) -> None:
    fleet = nodes("r1.s1.n1", "r1.s1.n2")
    first = Snapshot(1, (model(),), fleet)
    standing = carried_out(first, plan(first))
    (drained, other) = standing.nodes
    told = replace(standing, nodes=(replace(drained, order=order), other))
    made = plan(told)
    done = plan(carried_out(told, made))

    assert where(made) == {"r1.s1.n2"}
    assert bool(made.placements["r1.s1.n1"]) is (order is Order.DRAIN)
    assert done.placements["r1.s1.n1"] == ()


def test_residency_is_not_given_up_for_anything() -> None:
    at_home = model(2, regions=("r1",), survives_site_loss=True)
    fleet = (*nodes("r1.s1.n1", health=Health.EVICTED), *nodes("r1.s2.n1", "r2.s1.n1"))
    made = plan(Snapshot(1, (at_home,), fleet))

    assert where(made) <= {"r1.s2.n1"}
    assert made.short == {"m": 2}


@pytest.mark.parametrize(
    ("deployment", "reason"),
    [
        (model(1000), "1000 replicas are wanted, but a node holds one at most and only 5"),
        (model(1, regions=("r1",), pins=("r2.s1",)), "pinned to r2, but allowed in r1 only"),
        (model(3, pins=("r1.s1.n1", "r1.s1.n2")), "pinned to 2 nodes"),
        (model(1, survives_site_loss=True, pins=("r1.s1",)), "cannot survive the loss of r1/s1"),
        (model(4, survives_site_loss=True), "4 replicas are wanted after the loss of any one site"),
        (model(5, per_site_max=1), "only 2 could hold it with 1 at most at a site"),
    ],
)
def test_what_can_never_be_is_said_with_its_reason(deployment: Deployment, reason: str) -> None:
    assert reason in impossible(deployment, emptied(Snapshot(1, nodes=TWO_SITES)))


def test_a_thousand_replicas_on_three_nodes_are_refused_quickly() -> None:
    fleet, wanted = nodes("r1.s1.n1", "r1.s1.n2", "r1.s1.n3"), model(1000)
    began = time.process_time()
    made = plan(Snapshot(1, (wanted,), fleet))

    assert len(where(made)) == 3
    assert made.short == {"m": 997}
    assert time.process_time() - began < 1


def test_what_is_in_the_way_is_counted() -> None:
    fleet = (
        *nodes("r1.s1.n1", "r1.s1.n2", memory_mib=1),
        *nodes("r1.s1.n3", health=Health.SUSPECT),
        *nodes("r2.s1.n1"),
    )
    made = plan(Snapshot(1, (deployment := model(1, regions=("r1",)),), fleet))
    found = hindrances(made.packing, deployment)

    assert {str(one.obstacle): (one.nodes, one.example) for one in found} == {
        "too little memory free": (2, "r1.s1.n1"),
        "not well": (1, "r1.s1.n3"),
        "not allowed there": (1, "r2.s1.n1"),
    }
