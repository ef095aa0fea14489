"""A bundle that fails on a node leaves it for a growing while, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from busbar_scheduler.domain.avoiding import (
    CRASHED_FIRST_S,
    CRASHED_MAX,
    FAILED_MAX,
    FIRST_S,
    LONGEST_S,
    Avoidance,
)
from busbar_scheduler.domain.decisions import Verdict
from busbar_scheduler.domain.explaining import emptied
from busbar_scheduler.domain.fleet import (
    Assignment,
    Avoided,
    Deployment,
    Node,
    Replica,
    ReplicaState,
    Snapshot,
)
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.planning import Plan, plan, replan
from busbar_scheduler.domain.progress import progress_of
from busbar_scheduler.domain.quarantine import TRITONS_LOST_MAX
from hypothesis import given
from hypothesis import strategies as st

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
A, B, C = "r1.s1.n1", "r1.s1.n2", "r1.s2.n1"


def failing(times: int = FAILED_MAX, *, crashes: int = 0, digest: str = DIGEST) -> Replica:
    return Replica(
        "m",
        digest,
        ReplicaState.FAILED,
        4,
        "no such GPU",
        failed_count=times,
        crashed_count=crashes,
    )


READY = Replica("m", DIGEST, ReplicaState.READY, 4)
LOADING = Replica("m", DIGEST, ReplicaState.LOADING, 4)


def test_a_bundle_leaves_a_node_after_so_many_failures_in_a_row() -> None:
    watch = Avoidance()

    assert watch.look({A: [failing(FAILED_MAX - 1)], B: [READY]}, 0.0) == {}
    (found,) = watch.look({A: [failing()], B: [READY]}, 1.0)[A]
    assert (found.digest, found.crashed) == (DIGEST, False)
    assert found.reason == f"it failed here {FAILED_MAX} times in a row: no such GPU"


def test_it_leaves_before_its_crashes_cost_the_whole_node() -> None:
    assert CRASHED_MAX < TRITONS_LOST_MAX
    crashing = failing(CRASHED_MAX, crashes=CRASHED_MAX)

    (found,) = Avoidance().look({A: [crashing]}, 0.0)[A]
    assert (found.crashed, found.until_s) == (True, CRASHED_FIRST_S)


def test_each_time_it_stays_away_for_longer() -> None:
    watch, now, lasted = Avoidance(), 0.0, list[float]()
    for _ in range(9):
        (found,) = watch.look({A: [failing()], B: [READY]}, now)[A]
        lasted.append(found.until_s - now)
        assert watch.look({B: [READY]}, found.until_s - 0.1) != {}, "it may not come back yet"
        assert watch.look({A: [LOADING], B: [READY]}, found.until_s) == {}, "it may come back"
        now = found.until_s + 1

    assert lasted[0] == FIRST_S
    assert all(after == min(2 * before, LONGEST_S) for before, after in pairwise(lasted))


def test_after_its_return_one_failure_is_enough_and_lasting_is_forgiven() -> None:
    watch = Avoidance()
    watch.look({A: [failing()], B: [READY]}, 0.0)
    again = watch.look({A: [failing(1)], B: [READY]}, FIRST_S + 1)
    watch.look({A: [READY], B: [READY]}, 4 * FIRST_S)

    assert A in again
    assert watch.look({A: [failing(1)], B: [READY]}, 4 * FIRST_S + 1) == {}


def test_what_is_forgiven_counts_anew_and_only_there() -> None:
    watch, both = Avoidance(), {A: [failing(5)], B: [failing(5)]}
    watch.look(both, 0.0)
    watch.forgive(A)
    later = [set(watch.look({**both, A: [failing(n)]}, 1.0)) for n in (5, 6, 7, 8)]

    assert later == [{B}, {B}, {B}, {A, B}]


def test_one_that_came_anew_after_it_was_forgiven_has_failed_as_often_as_it_says() -> None:
    watch = Avoidance()
    watch.look({A: [failing(5)], B: [READY]}, 0.0)
    watch.forgive(A)
    watch.look({A: [failing(1)], B: [READY]}, 1.0)

    assert A in watch.look({A: [failing(FAILED_MAX)], B: [READY]}, 2.0)


def test_one_that_is_ready_for_a_moment_only_is_not_forgiven() -> None:
    watch = Avoidance()
    watch.look({A: [failing()], B: [READY]}, 0.0)
    flapping = replace(READY, failed_count=FAILED_MAX + 1)

    assert A in watch.look({A: [flapping], B: [READY]}, FIRST_S + 1)


@pytest.mark.parametrize(
    ("nodes_working", "suspended"), [(0, True), (2, True), (3, False)], ids=str
)
def test_what_fails_on_as_many_nodes_as_it_works_on_is_tried_nowhere_new(
    nodes_working: int, suspended: bool
) -> None:
    watch = Avoidance()
    well = {f"r2.s1.n{at}": [READY] for at in range(nodes_working)}
    watch.look({A: [failing()], B: [failing()], **well}, 0.0)

    assert (DIGEST in watch.suspended) is suspended
    watch.look(well, FIRST_S * 2)
    assert watch.suspended == {}


def test_where_it_worked_before_a_site_went_dark_counts() -> None:
    watch, dark = Avoidance(), {f"r2.s1.n{at}": [READY] for at in range(5)}
    watch.look(dark, 0.0)
    watch.look({A: [failing()], B: [failing()], **{node: [] for node in dark}}, 1.0)

    assert watch.suspended == {}


def test_one_that_works_nowhere_is_tried_ever_more_rarely_whichever_node_it_is() -> None:
    watch = Avoidance()
    (first,) = watch.look({A: [failing()]}, 0.0)[A]
    (second,) = watch.look({B: [failing()]}, first.until_s)[B]

    assert second.until_s - first.until_s == 2 * FIRST_S


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B, C]), st.integers(0, 6), st.integers(0, 3), st.booleans()),
        max_size=60,
    )
)
def test_nothing_is_kept_off_for_longer_than_an_hour(
    course: list[tuple[str, int, int, bool]],
) -> None:
    watch = Avoidance()
    for second, (node, failed, crashed, up) in enumerate(course):
        state = ReplicaState.READY if up else ReplicaState.FAILED
        replica = replace(
            READY, state=state, failed_count=failed, crashed_count=min(failed, crashed)
        )
        now = second * 400.0
        for avoided in watch.look({node: [replica]}, now).values():
            assert all(now < one.until_s <= now + LONGEST_S for one in avoided)


# --- what a plan makes of it -----------------------------------------------------------------


def deployment(name: str = "m", replicas: int = 1, digest: str = DIGEST) -> Deployment:
    return Deployment(name, digest, Manifest("m", "1", Task.TENSOR, 4, 100, "default"), replicas)


def node(key: str, *avoids: Avoided, memory_mib: int = 1000) -> Node:
    region, site, _ = key.split(".")
    return Node(key, region, site, memory_mib, 100, avoids=avoids)


def avoided(*, crashed: bool = False) -> Avoided:
    return Avoided(DIGEST, "m", "it failed here", 60.0, crashed)


def held(name: str = "m", digest: str = DIGEST) -> Assignment:
    return Assignment(name, digest, 4)


def where(made: Plan, name: str = "m") -> list[str]:
    return [
        key for key, all_ in made.placements.items() if name in {one.deployment for one in all_}
    ]


BOTH = (deployment(), deployment("other", digest=OTHER))


def test_it_is_moved_with_the_reason_and_other_models_stay() -> None:
    placed = {A: (held(), held("other", OTHER))}
    before = plan(Snapshot(1, BOTH, (node(A), node(B)), placed))
    now = Snapshot(1, BOTH, (node(A, avoided()), node(B)), placed)
    made = replan(before, now)

    assert (where(made), where(made, "other")) == ([B], [A])
    assert [str(one) for one in made.decisions if one.verdict is Verdict.REMOVED] == [
        "m removed on r1/s1/n1: it failed here"
    ]
    assert where(plan(replace(now, placements=made.placements))) == [B]


def test_where_there_is_no_other_place_it_is_tried_on_there() -> None:
    snapshot = Snapshot(
        1, (deployment(),), (node(A, avoided()), node(B, memory_mib=50)), {A: (held(),)}
    )
    made = plan(snapshot)

    assert where(made) == [A]
    assert made.short == {}
    assert plan(replace(snapshot, placements=made.placements)).placements == made.placements


def test_what_kills_triton_goes_although_there_is_no_other_place() -> None:
    snapshot = Snapshot(
        1, BOTH, (node(A, avoided(crashed=True)),), {A: (held(), held("other", OTHER))}
    )
    made = plan(snapshot)
    status = progress_of(deployment(), made, emptied(snapshot))

    assert (where(made), where(made, "other")) == ([], [A])
    assert (status.status, "it failed here" in status.reason) == ("failing", True)


def test_what_was_tried_on_where_it_failed_moves_as_soon_as_another_has_room() -> None:
    full = (node(A, avoided()), node(B, memory_mib=50))
    snapshot = Snapshot(1, (deployment(),), full, {A: (held(),)})
    before = plan(snapshot)
    failed_again = replace(node(A, avoided()), replicas=(failing(FAILED_MAX + 1),))

    assert where(before) == [A]
    assert where(replan(before, replace(snapshot, nodes=(failed_again, node(B))))) == [B]


def test_a_suspended_bundle_is_put_on_no_other_node_and_stays_where_it_works() -> None:
    snapshot = Snapshot(
        1,
        (deployment(replicas=2),),
        (node(A), node(B), node(C)),
        {A: (held(),)},
        suspended={DIGEST: "its bundle failed on 2 nodes and works on 1"},
    )
    made = plan(snapshot)

    assert where(made) == [A]
    (unplaced,) = [one for one in made.decisions if one.verdict is Verdict.UNPLACED]
    assert "failed on 2 nodes" in unplaced.reason
    over = replan(made, replace(snapshot, suspended={}, placements=made.placements))
    assert len(where(over)) == 2
