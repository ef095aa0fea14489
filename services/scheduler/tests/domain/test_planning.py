"""The plan: what goes where, and what may never happen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from busbar_scheduler.domain.decisions import Verdict
from busbar_scheduler.domain.explaining import emptied, impossible
from busbar_scheduler.domain.fleet import (
    Assignment,
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
from busbar_scheduler.domain.planning import Plan, plan
from busbar_scheduler.domain.publishing import Published, Stamped, diff
from hypothesis import given, settings
from hypothesis import strategies as st

DIGEST, OTHER_DIGEST = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def manifest(memory_mib: int = 100, slots: int = 4) -> Manifest:
    return Manifest("m", "1", Task.TENSOR, slots, memory_mib, "default")


def deployment(name: str = "m", replicas: int = 1, **changes: object) -> Deployment:
    base = Deployment(name, DIGEST, manifest(), replicas)
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def node(key: str, memory_mib: int = 1000, slots: int = 100, **changes: object) -> Node:
    region, site, _ = key.split(".")
    base = Node(key, region, site, memory_mib, slots)
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def where(made: Plan, name: str = "m") -> set[str]:
    return {
        key for key, held in made.placements.items() if any(one.deployment == name for one in held)
    }


def holding(name: str = "m", digest: str = DIGEST) -> Assignment:
    return Assignment(name, digest, 4)


def after(snapshot: Snapshot, made: Plan) -> Snapshot:
    return replace(snapshot, placements=made.placements, routes=made.routes)


@pytest.mark.parametrize("survives", [False, True])
def test_fewer_replicas_stay_spread_over_regions_and_sites(survives: bool) -> None:
    keys = ("r1.s1.n1", "r1.s1.n2", "r1.s2.n1", "r2.s1.n1")
    nodes = tuple(
        node(key, replicas=(Replica("m", DIGEST, ReplicaState.READY, 4),)) for key in keys
    )
    placements = {key: (holding(),) for key in keys}

    def fewer(replicas: int) -> set[str]:
        wanted = deployment(replicas=replicas - survives, survives_site_loss=survives)
        return where(plan(Snapshot(1, (wanted,), nodes, placements=placements)))

    assert fewer(2) == {"r1.s1.n1", "r2.s1.n1"}
    assert fewer(3) == {"r1.s1.n1", "r1.s2.n1", "r2.s1.n1"}


def test_replicas_are_spread_over_regions_then_sites_then_nodes() -> None:
    nodes = tuple(node(key) for key in ("r1.s1.n1", "r1.s1.n2", "r1.s2.n1", "r2.s1.n1"))

    assert where(plan(Snapshot(1, (deployment(replicas=2),), nodes))) == {"r1.s1.n1", "r2.s1.n1"}
    three = where(plan(Snapshot(1, (deployment(replicas=3),), nodes)))
    assert three == {"r1.s1.n1", "r1.s2.n1", "r2.s1.n1"}


def test_a_node_holds_one_replica_of_a_deployment_at_most() -> None:
    made = plan(Snapshot(1, (deployment(replicas=3),), (node("r1.s1.n1"),)))

    assert [one.verdict for one in made.decisions] == [
        Verdict.UNPLACED,
        Verdict.UNPLACED,
        Verdict.PLACED,
    ]
    assert "already holds a replica" in made.decisions[0].reason


@pytest.mark.parametrize(
    ("full", "reason"),
    [
        (node("r1.s1.n1", memory_mib=99), "99 of 100 MiB free"),
        (node("r1.s1.n1", slots=3), "3 of 4 slots free"),
        (node("r1.s1.n1", health=Health.SUSPECT), "is suspect"),
        (node("r1.s1.n1", health=Health.DRAINING), "is draining"),
    ],
)
def test_what_cannot_be_placed_says_why(full: Node, reason: str) -> None:
    (decision,) = plan(Snapshot(1, (deployment(),), (full,))).decisions

    assert decision.verdict is Verdict.UNPLACED
    assert reason in decision.reason


def test_only_allowed_regions_are_used() -> None:
    nodes = (node("r1.s1.n1"), node("r2.s1.n1"))

    assert where(plan(Snapshot(1, (deployment(replicas=2, regions=("r2",)),), nodes))) == {
        "r2.s1.n1"
    }


def test_what_is_placed_and_alive_stays_although_a_better_node_came() -> None:
    snapshot = Snapshot(
        1,
        (deployment(),),
        (node("r1.s1.n1", memory_mib=9000), node("r1.s1.n2")),
        placements={"r1.s1.n2": (holding(),)},
    )

    assert where(plan(snapshot)) == {"r1.s1.n2"}


@pytest.mark.parametrize("health", [one for one in Health if one.keeps])
def test_a_blip_moves_nothing(health: Health) -> None:
    unsure = node("r1.s1.n1", health=health)
    if health is Health.UNREPORTED:
        unsure = replace(unsure, memory_mib=0, slots=0)
    snapshot = Snapshot(
        1, (deployment(),), (unsure, node("r1.s1.n2")), placements={"r1.s1.n1": (holding(),)}
    )

    assert where(plan(snapshot)) == {"r1.s1.n1"}


@pytest.mark.parametrize("health", [Health.EVICTED, Health.LOST])
def test_what_an_evicted_node_held_is_placed_elsewhere(health: Health) -> None:
    snapshot = Snapshot(
        1,
        (deployment(),),
        (node("r1.s1.n1", health=health), node("r1.s1.n2")),
        placements={"r1.s1.n1": (holding(),)},
    )
    made = plan(snapshot)

    assert where(made) == {"r1.s1.n2"}
    assert ("r1.s1.n1" in made.placements) == (health is Health.EVICTED)


def test_scaling_down_keeps_the_ready_replica() -> None:
    ready = Replica("m", DIGEST, ReplicaState.READY, 4)
    failed = Replica("m", DIGEST, ReplicaState.FAILED, 4)
    snapshot = Snapshot(
        1,
        (deployment(),),
        (node("r1.s1.n1", replicas=(failed,)), node("r1.s1.n2", replicas=(ready,))),
        placements={"r1.s1.n1": (holding(),), "r1.s1.n2": (holding(),)},
    )

    assert where(plan(snapshot)) == {"r1.s1.n2"}


def test_a_new_bundle_is_loaded_where_the_old_one_is() -> None:
    snapshot = Snapshot(
        1,
        (deployment(digest=OTHER_DIGEST),),
        (node("r1.s1.n1"), node("r1.s1.n2")),
        placements={"r1.s1.n2": (holding(),)},
    )
    made = plan(snapshot)

    assert made.placements["r1.s1.n2"] == (holding(digest=OTHER_DIGEST),)
    assert made.placements["r1.s1.n1"] == ()


def test_a_growing_bundle_does_not_push_its_neighbour_out() -> None:
    grown = deployment("old", digest=OTHER_DIGEST, manifest=manifest(950), created_unix_ms=1)
    neighbour = deployment("young", created_unix_ms=2)
    snapshot = Snapshot(
        1,
        (grown, neighbour),
        (node("r1.s1.n1"),),
        placements={"r1.s1.n1": (holding("old"), holding("young"))},
    )

    assert [one.deployment for one in plan(snapshot).placements["r1.s1.n1"]] == ["young"]


def test_what_can_never_fit_is_known_before_anything_is_full() -> None:
    fleet = emptied(Snapshot(1, nodes=(node("r1.s1.n1"), node("r1.s1.n2"))))

    assert impossible(deployment(replicas=2), fleet) == ""
    assert "only 2 could hold it" in impossible(deployment(replicas=3), fleet)
    assert "1000 of 5000 MiB" in impossible(deployment(manifest=manifest(5000)), fleet)
    assert impossible(deployment(regions=("r9",)), fleet) == "no node in region r9"
    assert impossible(deployment(), emptied(Snapshot(1))) == "no node in the fleet"


@pytest.mark.parametrize("order", [Order.CORDON, Order.DRAIN, Order.QUARANTINE])
def test_what_an_order_keeps_off_can_be_placed_once_it_is_lifted(order: Order) -> None:
    nodes = (node("r1.s1.n1", order=order), node("r1.s2.n1"), node("r1.s3.n1"))
    held = {one.key: (holding(),) for one in nodes}
    sites = {"r1.s2": Site("r1.s2", order=Order.DRAIN)}
    fleet = emptied(Snapshot(1, nodes=nodes, sites=sites, placements=held))

    assert impossible(deployment(replicas=3), fleet) == ""
    assert "only 3 could hold it" in impossible(deployment(replicas=4), fleet)


def test_nodes_that_are_gone_are_named_where_nothing_else_is_left() -> None:
    gone = node("r2.s2.n1", health=Health.LOST)
    snapshot = Snapshot(1, (deployment(regions=("r2",)),), (node("r1.s1.n1"), gone))

    [decision] = plan(snapshot).decisions
    assert decision.reason == "no node is left in region r2: r2/s2/n1 is lost"


# --- routes --------------------------------------------------------------------------------------


def test_routes_lead_to_ready_replicas_on_nodes_that_serve() -> None:
    ready = Replica("m", DIGEST, ReplicaState.READY, 4, model_metadata=b"meta", model_config=b"c")
    old = Replica("m", OTHER_DIGEST, ReplicaState.READY, 4)
    loading = Replica("m", DIGEST, ReplicaState.LOADING, 4)
    nodes = (
        node("r1.s1.n1", replicas=(ready,)),
        node("r1.s1.n2", replicas=(ready,)),
        node("r1.s1.n3", replicas=(ready,), health=Health.SUSPECT),
        node("r1.s1.n4", replicas=(loading,)),
        node("r1.s1.n5", replicas=(old,)),
        node("r2.s1.n1", replicas=(ready,)),
        node("r2.s1.n2", replicas=(ready,), health=Health.DRAINING),
    )
    snapshot = Snapshot(
        1,
        (deployment(replicas=7),),
        nodes,
        placements={one.key: (holding(),) for one in nodes},
    )
    route = plan(snapshot).routes["m"]

    assert [(one.region, one.ready_slots, one.ready_replicas) for one in route.targets] == [
        ("r1", 8, 2),
        ("r2", 4, 1),
    ]
    assert (route.model_metadata, route.model_config, route.unready_reason) == (b"meta", b"c", "")


def test_a_route_keeps_the_models_description_while_nothing_is_ready() -> None:
    ready = Replica("m", DIGEST, ReplicaState.READY, 4, model_metadata=b"meta", model_config=b"c")
    here = node("r1.s1.n1", replicas=(ready,))
    before = Snapshot(1, (deployment(),), (here,), placements={"r1.s1.n1": (holding(),)})
    gone = replace(after(before, plan(before)), nodes=(replace(here, health=Health.SUSPECT),))
    route = plan(gone).routes["m"]

    assert route.targets == ()
    assert route.model_metadata == b"meta"
    assert route.unready_reason == "r1/s1/n1 is suspect"


@pytest.mark.parametrize(
    ("wanted", "replica", "reason"),
    [
        (0, None, "no replicas are wanted"),
        (1, None, "waiting for r1/s1/n1"),
        (1, Replica("m", DIGEST, ReplicaState.LOADING, 4), "loading on r1/s1/n1"),
        (
            1,
            Replica("m", DIGEST, ReplicaState.FAILED, 4, "warm-up differs"),
            "failed on r1/s1/n1: warm-up differs",
        ),
    ],
)
def test_a_route_says_why_nothing_is_ready(
    wanted: int, replica: Replica | None, reason: str
) -> None:
    here = node("r1.s1.n1", replicas=(replica,) if replica else ())
    snapshot = Snapshot(1, (deployment(replicas=wanted),), (here,))

    assert plan(snapshot).routes["m"].unready_reason == reason


# --- what always holds ---------------------------------------------------------------------------

KEYS = [f"{region}.{site}.{name}" for region in ("r1", "r2") for site in "ab" for name in "xyz"]
NAMES = ["ant", "bee", "cat", "dog", "elk"]
deployments = st.builds(
    lambda name, replicas, memory, slots, regions, digest, created: Deployment(
        name,
        digest,
        manifest(memory, slots),
        replicas,
        tuple(sorted(regions)),
        (),
        created,
    ),
    st.sampled_from(NAMES),
    st.integers(0, 14),
    st.integers(1, 700),
    st.integers(1, 60),
    st.sets(st.sampled_from(["r1", "r2", "r3"])),
    st.sampled_from([DIGEST, OTHER_DIGEST]),
    st.integers(0, 3),
)
replicas_seen = st.builds(
    lambda name, digest, state: Replica(name, digest, state, 4, model_metadata=b"m"),
    st.sampled_from(NAMES),
    st.sampled_from([DIGEST, OTHER_DIGEST]),
    st.sampled_from(list(ReplicaState)),
)
nodes_seen = st.builds(
    lambda key, memory, slots, health, replicas: node(
        key,
        0 if health is Health.UNREPORTED else memory,
        0 if health is Health.UNREPORTED else slots,
        health=health,
        replicas=tuple(replicas),
    ),
    st.sampled_from(KEYS),
    st.integers(0, 2000),
    st.integers(0, 200),
    st.sampled_from(list(Health)),
    st.lists(replicas_seen, max_size=3, unique_by=lambda one: one.deployment),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    wanted = draw(st.lists(deployments, max_size=5, unique_by=lambda one: one.name))
    nodes = draw(st.lists(nodes_seen, max_size=8, unique_by=lambda one: one.key))
    # What was placed before came from a plan, made when the nodes were well and empty.
    well = tuple(
        replace(one, health=Health.OK, memory_mib=2000, slots=200)
        for one in nodes
        if draw(st.booleans())
    )
    before = draw(st.lists(deployments, max_size=5, unique_by=lambda one: one.name))
    placed = plan(Snapshot(0, tuple(before), well))
    return Snapshot(1, tuple(wanted), tuple(nodes), placed.placements, placed.routes)


@settings(max_examples=60)
@given(snapshots())
def test_no_node_is_ever_given_more_than_it_has(snapshot: Snapshot) -> None:
    made = plan(snapshot)
    needs = {one.name: one.manifest for one in snapshot.deployments}

    for one in snapshot.nodes:
        if one.health is Health.UNREPORTED:
            continue  # what it has is not known; it only keeps what it held
        held = made.placements.get(one.key, ())
        assert sum(needs[at.deployment].memory_mib for at in held) <= one.memory_mib
        assert sum(needs[at.deployment].slots for at in held) <= one.slots


@settings(max_examples=60)
@given(snapshots())
def test_a_plan_that_was_carried_out_is_planned_again_unchanged(snapshot: Snapshot) -> None:
    made = plan(snapshot)
    again = plan(after(snapshot, made))
    published = Published(
        placements=made.placements,
        routes=made.routes,
        placement_stamps={key: Stamped(7, 1) for key in made.placements},
        route_stamps={key: Stamped(7, 1) for key in made.routes},
    )

    assert (again.placements, again.routes) == (made.placements, made.routes)
    assert not diff(published, again, fencing_token=7)


@settings(max_examples=60)
@given(snapshots(), st.randoms())
def test_the_order_in_which_things_are_listed_does_not_matter(
    snapshot: Snapshot, random: st.DataObject
) -> None:
    nodes, wanted = list(snapshot.nodes), list(snapshot.deployments)
    random.shuffle(nodes)  # pyright: ignore[reportAttributeAccessIssue]
    random.shuffle(wanted)  # pyright: ignore[reportAttributeAccessIssue]
    shuffled = replace(snapshot, nodes=tuple(nodes), deployments=tuple(wanted))

    assert plan(shuffled) == plan(snapshot)


@settings(max_examples=60)
@given(snapshots())
def test_every_wanted_replica_is_placed_once_or_explained(snapshot: Snapshot) -> None:
    made = plan(snapshot)

    for one in snapshot.deployments:
        leaving = sum(at.verdict is Verdict.LEAVING for at in made.decisions_on(one.name))
        placed = len(where(made, one.name)) - leaving
        unplaced = sum(at.verdict is Verdict.UNPLACED for at in made.decisions_on(one.name))
        assert placed + unplaced == one.replicas
        assert all(at.reason for at in made.decisions_on(one.name))


@settings(max_examples=60)
@given(snapshots())
def test_nothing_is_placed_anew_on_a_node_that_is_not_well(snapshot: Snapshot) -> None:
    made = plan(snapshot)
    health = {one.key: one.health for one in snapshot.nodes}

    for decision in made.decisions:
        if decision.verdict is Verdict.PLACED:
            assert health[decision.node].takes_new
    for route in made.routes.values():
        serving = {one.region for one in snapshot.nodes if one.health.serves}
        assert {target.region for target in route.targets} <= serving


def test_a_new_leader_rewrites_every_entry() -> None:
    snapshot = Snapshot(1, (deployment(),), (node("r1.s1.n1"),))
    made = plan(snapshot)
    published = Published(
        placements=made.placements,
        routes=made.routes,
        placement_stamps={"r1.s1.n1": Stamped(3, 10)},
        route_stamps={"m": Stamped(3, 11)},
    )
    changes = diff(published, made, fencing_token=4)

    assert set(changes.placements) == {"r1.s1.n1"}
    assert set(changes.routes) == {"m"}


def sleeper(**changes: object) -> Deployment:
    return replace(deployment(replicas=0), max_replicas=2, **changes)  # pyright: ignore[reportArgumentType]


def ready_at(*keys: str) -> tuple[Node, ...]:
    served = Replica("m", DIGEST, ReplicaState.READY, 4, model_metadata=b"meta", model_config=b"c")
    return tuple(node(key, replicas=(served,)) for key in keys)


def test_demand_brings_replicas_and_takes_them_away_again() -> None:
    nodes = ready_at("r1.s1.n1", "r1.s1.n2", "r1.s1.n3")
    busy = plan(Snapshot(1, (sleeper(),), nodes, demands={"m": Demand(2)}))
    held = after(Snapshot(1, (sleeper(),), nodes), busy)
    less = plan(replace(held, demands={"m": Demand(1)}))
    none = plan(replace(held, demands={"m": Demand(0, loading_ms=7_000)}))

    assert (len(where(busy)), len(where(less)), len(where(none))) == (2, 1, 0)
    assert none.short == {}
    route = none.routes["m"]
    assert (route.unready_reason, route.wakes_within_ms, route.model_metadata) == (
        "it sleeps until it is asked for",
        7_000,
        b"meta",
    )
    assert plan(none_after(held, none)).placements == none.placements


def none_after(before: Snapshot, made: Plan) -> Snapshot:
    return replace(after(before, made), demands={"m": Demand(0, loading_ms=7_000)})


@pytest.mark.parametrize(
    ("of", "replica", "wakes"),
    [
        (deployment(replicas=0), None, False),
        (deployment(replicas=1, max_replicas=2), None, False),
        (sleeper(), None, True),
        (sleeper(), Replica("m", DIGEST, ReplicaState.LOADING, 4), True),
        (sleeper(), Replica("m", DIGEST, ReplicaState.FAILED, 4, "warm-up differs"), False),
        (sleeper(regions=("r9",)), None, False),
    ],
    ids=["stopped", "promised", "asked for", "loading", "failed", "without a place"],
)
def test_requests_wait_only_for_what_may_come_back(
    of: Deployment, replica: Replica | None, wakes: bool
) -> None:
    here = node("r1.s1.n1", replicas=(replica,) if replica else ())
    snapshot = Snapshot(1, (of,), (here,), demands={"m": Demand(1)} if of.scaled else {})

    assert (plan(snapshot).routes["m"].wakes_within_ms > 0) == wakes


def test_what_wakes_is_placed_even_where_nobody_knows_whether_it_pays() -> None:
    site = Site("r1.s1", energy_nanos_per_kwh=10**12)
    dear = sleeper(value_nanos_per_request=1, manifest=replace(manifest(), power_w=500))
    snapshot = Snapshot(
        1, (dear,), (node("r1.s1.n1"),), sites={"r1.s1": site}, demands={"m": Demand(1)}
    )

    assert where(plan(snapshot)) == {"r1.s1.n1"}


def test_a_sleeper_that_fits_nowhere_is_said_to() -> None:
    large = sleeper(manifest=manifest(memory_mib=10_000))
    snapshot = Snapshot(1, (large,), (node("r1.s1.n1"),), demands={"m": Demand(1)})

    assert "1000 of 10000 MiB free" in impossible(large, emptied(snapshot))
