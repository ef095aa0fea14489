"""When a new version goes on and when back, and that there are slots enough meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from busbar_scheduler.domain.advancing import (
    advance,
    begin,
    cannot_share,
    exchange,
    give_up,
    held_back,
    serving_alone,
    settling,
    take_back,
)
from busbar_scheduler.domain.comparing import Outcomes
from busbar_scheduler.domain.fleet import (
    Bundle,
    Deployment,
    Node,
    Replica,
    ReplicaState,
    Snapshot,
)
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.planning import plan
from busbar_scheduler.domain.rollout_news import Moved, news_of
from busbar_scheduler.domain.rollouts import BY_HAND, Canary, Phase, RolledBack, Rollout
from busbar_scheduler.domain.tracks import expanded, joined
from busbar_scheduler.domain.watching import Sight, Standing, Watch
from counted import outcomes
from hypothesis import given
from hypothesis import strategies as st

OLD, NEW, NEWER = "sha256:01", "sha256:02", "sha256:03"
MODEL = Manifest("m", "1", Task.TENSOR, slots=4, memory_mib=100, price_class="p")
MODEL_2 = replace(MODEL, version="2")
TERMS = Rollout(observe_s=10, min_samples=20, ready_within_s=60)
SERVING = Deployment("m", OLD, MODEL, 2, rollout=TERMS)
NOBODY = Outcomes()
ALL_READY = Standing(ready=2, placed=2, wanted=2)


def tried(phase: Phase = Phase.OBSERVING, percent: int = 10) -> Deployment:
    return replace(SERVING, canary=Canary(NEW, MODEL_2, phase, percent, 0))


def sight(canary: Outcomes = NOBODY, stable: Outcomes = NOBODY, **changes: object) -> Sight:
    seen = Sight(True, "", 1e6, 0.0, canary, stable, ALL_READY)
    return replace(seen, **changes)  # pyright: ignore[reportArgumentType]


def wish(digest: str, terms: Rollout | None = TERMS, **changes: object) -> Deployment:
    wanted = replace(SERVING, digest=digest, manifest=MODEL_2, rollout=terms)
    return replace(wanted, **changes)  # pyright: ignore[reportArgumentType]


def declared(before: Deployment, wished: Deployment) -> Deployment:
    return begin(before, wished, 2_000, keep=False)


@pytest.mark.parametrize(
    ("canary", "stable", "told"),
    [
        (outcomes(0, 30), outcomes(270), "30 of its 30 requests failed"),
        (outcomes(0, 2), outcomes(3), ""),
        (outcomes(0, 30), outcomes(0, 270), ""),
        (outcomes(28, 2), outcomes(255, 15), ""),
        (outcomes(50, 0, 2_000), outcomes(50, 0, 1_000), "takes 2.0 times as long"),
        (outcomes(50, 0, 1_400), outcomes(50, 0, 1_000), ""),
        (outcomes(10, 0, 9_000), outcomes(50, 0, 1_000), ""),
    ],
    ids=["fails", "too few", "both fail", "alike", "slow", "slow enough", "too few to be slow"],
)
def test_a_version_is_given_up_when_it_is_surely_worse(
    canary: Outcomes, stable: Outcomes, told: str
) -> None:
    step = advance(tried(), sight(canary, stable, observed_s=1.0), 1_000)

    assert told in step.reason
    if told:
        assert step.deployment.digest == OLD
        assert step.deployment.canary == Canary(NEW, MODEL_2, Phase.LEAVING, 10, 1_000)
        assert step.deployment.rolled_back is not None
    else:
        assert step.deployment == tried()


def test_a_good_version_takes_over_in_steps() -> None:
    good = sight(outcomes(100), outcomes(900))
    deployment, seen = tried(), list[tuple[str, int, str]]()
    for now in range(1, 6):
        deployment = advance(deployment, good, now * 20_000).deployment
        canary = deployment.canary
        seen.append(
            (str(canary.phase), canary.share_percent, deployment.digest)
            if canary
            else ("done", 0, deployment.digest)
        )

    assert seen == [
        ("observing", 50, OLD),
        ("taking over", 50, OLD),
        ("settling", 100, NEW),
        ("leaving", 0, NEW),
        ("done", 0, NEW),
    ]
    assert deployment.previous_digest == OLD
    assert deployment.rolled_back is None


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        (sight(outcomes(100), outcomes(900), observed_s=9.0), Phase.OBSERVING),
        (sight(outcomes(19), outcomes(900)), Phase.OBSERVING),
        (sight(outcomes(100), outcomes(19)), Phase.OBSERVING),
        (sight(canary_ready=False, unready_s=59.0), Phase.OBSERVING),
        (sight(canary_ready=False, unready_s=59.0), Phase.TAKING_OVER),
        (sight(standing=Standing(1, 2, 2)), Phase.SETTLING),
    ],
    ids=["too early", "too few", "too few of the old", "not ready", "no room", "not settled"],
)
def test_it_waits_for(seen: Sight, phase: Phase) -> None:
    assert advance(tried(phase), seen, 59_000).deployment == tried(phase)


@pytest.mark.parametrize("phase", [Phase.OBSERVING, Phase.TAKING_OVER])
def test_one_that_is_not_ready_for_too_long_is_given_up(phase: Phase) -> None:
    step = advance(tried(phase), sight(canary_ready=False, missing="no room", unready_s=60), 60_000)

    assert step.reason == "not ready for 60 s: no room"
    assert step.deployment.rolled_back is not None


def watched(missing: Sequence[str], every_s: float = 1.0) -> Sight:
    """What is seen last when it lacked this at one look after another."""
    watch = Watch(Canary(NEW, MODEL_2, Phase.OBSERVING, 10, 0), NOBODY, NOBODY, 0.0)
    looks = [
        watch.see(at * every_s, NOBODY, NOBODY, ALL_READY, lacks)
        for at, lacks in enumerate(missing, start=1)
    ]
    return looks[-1]


@pytest.mark.parametrize(
    ("missing", "every_s", "unready_s", "observed_s"),
    [
        (["loads"] * 59 + [""] * 600 + ["a node is silent"] * 4, 1.0, 4.0, 600.0),
        (["loads"] * 70, 1.0, 70.0, 0.0),
        (["loads"] * 10, 100.0, 20.0, 0.0),
    ],
    ids=["a blip after long", "never ready", "nothing was seen between"],
)
def test_only_the_time_that_it_is_not_ready_at_a_stretch_counts_against_it(
    missing: Sequence[str], every_s: float, unready_s: float, observed_s: float
) -> None:
    seen = watched(missing, every_s)
    step = advance(tried(), seen, 3_600_000)

    assert (seen.unready_s, seen.observed_s) == (unready_s, observed_s)
    assert (step.deployment.rolled_back is None) == (unready_s < TERMS.ready_within_s)


def test_what_one_that_crashes_again_and_again_has_failed_adds_up() -> None:
    watch = Watch(Canary(NEW, MODEL_2, Phase.OBSERVING, 10, 0), NOBODY, outcomes(1_000), 0.0)
    failed, step = 0, advance(tried(), sight(), 0)
    for look in range(1, 40):
        crashed = look % 2 == 0
        failed += crashed
        seen = watch.see(
            float(look), outcomes(0, failed), outcomes(1_000 + 20 * look), ALL_READY, "x" * crashed
        )
        step = advance(tried(), seen, look * 1_000)
        if step.deployment.rolled_back:
            break

    assert step.deployment.rolled_back is not None
    assert "of its" in step.reason


@pytest.mark.parametrize(
    ("standing", "now_ms", "moves"),
    [
        (Standing(ready=1, placed=1, wanted=2), 1_000, True),
        (Standing(ready=2, placed=2, wanted=5), 1_000, True),
        (Standing(ready=1, placed=2, wanted=2), 59_000, False),
        (Standing(ready=1, placed=2, wanted=2), 60_000, True),
        (Standing(ready=0, placed=0, wanted=2), 90_000, False),
    ],
    ids=["a node died", "demand outgrew the room", "it loads", "it fails to load", "nobody serves"],
)
def test_a_change_of_versions_ends_with_what_there_is_room_for(
    standing: Standing, now_ms: int, *, moves: bool
) -> None:
    settling_down = replace(tried(Phase.SETTLING, 50), digest=NEW, manifest=MODEL_2)
    canary = advance(settling_down, sight(standing=standing), now_ms).deployment.canary

    assert canary is not None
    assert (canary.phase is Phase.LEAVING) == moves
    assert canary.capacity_percent == 100


def test_one_that_has_taken_over_is_taken_back_and_serves_until_the_old_one_does() -> None:
    taken_over = replace(tried(Phase.SETTLING, 50), digest=NEW, manifest=MODEL_2)
    back = take_back(taken_over, Bundle(OLD, 1, MODEL, 0), "wrong", 1_000)
    nobody = sight(standing=Standing(0, 2, 2))
    one = sight(standing=Standing(1, 2, 2))

    assert (back.digest, back.manifest, back.previous_digest) == (OLD, MODEL, "")
    assert back.rolled_back is not None
    assert back.rolled_back.digest == NEW
    assert advance(back, nobody, 31_000).deployment == back
    assert advance(back, one, 10_000).deployment == back
    assert advance(back, one, 11_000).deployment.canary is None
    assert advance(back, nobody, 61_000).deployment.canary is None
    for old_is_ready, percent in ((False, 1), (True, 0)):
        at = OLD if old_is_ready else NEW
        nodes = tuple(node(n, ("m", at, 4), ("m--canary", NEW, 4)) for n in range(2))
        snapshot = expanded(Snapshot(1, (back,), nodes))
        route = joined(plan(snapshot).routes, snapshot)["m"]
        assert route.canary is not None
        assert (route.canary.percent, bool(route.targets)) == (percent, old_is_ready)


@pytest.mark.parametrize(
    ("manifest", "percent"),
    [(MODEL_2, 1), (replace(MODEL_2, stop=("###",)), 0)],
    ids=["prepared alike", "prepared otherwise"],
)
def test_what_is_ready_of_a_version_that_takes_over_serves_while_nothing_else_does(
    manifest: Manifest, percent: int
) -> None:
    waiting = exchange(replace(SERVING, rollout=None), NEW, manifest, 0, keep=True)
    nodes = (node(0, ("m--canary", NEW, 4)), node(1))
    snapshot = expanded(Snapshot(1, (waiting,), nodes))
    route = joined(plan(snapshot).routes, snapshot)["m"]

    assert route.targets == ()
    assert route.canary is not None
    assert [one.ready_slots for one in route.canary.targets] == [4]
    assert route.canary.percent == percent


@pytest.mark.parametrize(("phase", "serves"), [(Phase.SETTLING, NEW), (Phase.LEAVING, OLD)])
def test_gateways_know_a_model_by_its_track_while_that_alone_serves(
    phase: Phase, serves: str
) -> None:
    deployment = replace(tried(phase, 50), digest=serves)
    other = OLD if serves == NEW else NEW
    nodes = tuple(_telling(n, ("m", other), ("m--canary", NEW)) for n in range(2))
    snapshot = expanded(Snapshot(1, (deployment,), nodes))
    alone = joined(plan(snapshot).routes, snapshot)
    whole = tuple(_telling(n, ("m", serves), ("m--canary", NEW)) for n in range(2))
    later = expanded(Snapshot(2, (deployment,), whole, routes=alone))
    together = joined(plan(later).routes, later)

    assert alone["m"].targets == ()
    assert (alone["m"].model_metadata, alone["m"].model_config) == (b"m--canary", b"m--canary")
    assert together["m"].targets != ()
    assert (together["m"].model_metadata, together["m"].model_config) == (b"m", b"m")


def _telling(number: int, *held: tuple[str, str]) -> Node:
    """A node whose replicas describe their models."""
    plain = node(number, *((name, digest, 4) for name, digest in held))
    told = tuple(
        replace(one, model_metadata=one.deployment.encode(), model_config=one.deployment.encode())
        for one in plain.replicas
    )
    return replace(plain, replicas=told)


def test_a_third_version_does_not_take_the_place_of_the_only_one_that_serves() -> None:
    taken_over = replace(tried(Phase.SETTLING, 50), digest=NEW, manifest=MODEL_2)
    back = take_back(taken_over, Bundle(OLD, 1, MODEL, 0), "wrong", 1_000)
    third, at_once = declared(back, wish(NEWER)), declared(back, wish(NEWER, None))
    given_up = give_up(tried(), "slow", 1_000)
    stopped = replace(back, replicas=0)

    assert "try again" in serving_alone(back, third, ready=0)
    assert not serving_alone(back, third, ready=1)
    assert not serving_alone(back, at_once, ready=0)
    assert "try again" in serving_alone(at_once, declared(at_once, wish("sha256:04")), ready=0)
    assert not serving_alone(given_up, declared(given_up, wish(NEWER)), ready=2)
    assert not serving_alone(stopped, declared(stopped, wish(NEWER)), ready=0)


def test_a_deployment_that_is_stopped_ends_its_rollout() -> None:
    stopped = replace(tried(), replicas=0)
    step = advance(stopped, sight(canary_ready=False), 1_000)
    snapshot = expanded(Snapshot(1, (stopped,), (node(1, ("m", OLD, 4), ("m--canary", NEW, 4)),)))
    decided = plan(snapshot)
    asleep = expanded(Snapshot(1, (replace(stopped, max_replicas=3),), ()))

    assert step.deployment.canary is not None
    assert step.deployment.canary.phase is Phase.LEAVING
    assert step.deployment.rolled_back is None
    assert [one.most for one in snapshot.deployments] == [0, 0]
    assert not any(decided.placements.values())
    assert joined(decided.routes, snapshot)["m"].targets == ()
    assert [one.replicas for one in asleep.deployments] == [1, 1]


def test_what_a_declaration_comes_to() -> None:
    given_up = give_up(tried(), "slow", 5)
    other_terms = replace(TERMS, max_latency_ratio=9.0)
    begun = begin(SERVING, wish(NEW), 7, keep=True)

    assert begin(None, wish(NEW), 7, keep=True) == wish(NEW)
    assert begun.digest == OLD
    assert begun.canary == Canary(NEW, MODEL_2, Phase.OBSERVING, 10, 7)
    assert begin(begun, wish(NEW, replicas=5), 9, keep=True) == replace(begun, replicas=5)
    replaced = begin(begun, wish(NEWER), 9, keep=True)
    assert replaced.canary == Canary(NEWER, MODEL_2, Phase.OBSERVING, 10, 9)
    assert begin(given_up, wish(NEW), 9, keep=True).canary == given_up.canary
    assert begin(given_up, wish(NEW), 9, keep=True).digest == OLD
    retried = begin(given_up, wish(NEW, other_terms), 9, keep=True)
    assert retried.canary is not None
    assert retried.canary.phase is Phase.OBSERVING
    stopped = begin(begun, SERVING, 9, keep=True)
    assert stopped.canary == Canary(NEW, MODEL_2, Phase.LEAVING, 10, 9)
    at_once = begin(begun, wish(NEWER, None), 9, keep=False)
    assert (at_once.digest, at_once.rollout) == (NEWER, None)


def test_what_did_worse_is_tried_again_on_the_same_terms_when_that_is_asked_for() -> None:
    given_up = give_up(tried(), "slow", 5)
    left = replace(given_up, canary=None)

    for before in (given_up, left):
        again = begin(before, wish(NEW), 9, keep=True, again=True)
        assert again.canary == Canary(NEW, MODEL_2, Phase.OBSERVING, 10, 9)
        assert again.rolled_back is None
        assert held_back(begin(before, wish(NEW), 9, keep=True), NEW) == "slow"
        assert held_back(again, NEW) == ""
        assert held_back(begin(before, wish(OLD), 9, keep=True), OLD) == ""


def test_what_an_operator_rolled_back_is_had_again_by_declaring_it() -> None:
    went_back = replace(SERVING, previous_digest=NEW, rolled_back=RolledBack(NEW, BY_HAND, 5))
    given_up = give_up(tried(), BY_HAND, 5)

    for before in (went_back, given_up):
        again = begin(before, wish(NEW), 9, keep=True)
        assert again.canary == Canary(NEW, MODEL_2, Phase.OBSERVING, 10, 9)
        assert again.rolled_back is None


def test_a_bundle_that_nobody_watches_takes_over_when_it_is_ready() -> None:
    unwatched = begin(SERVING, wish(NEW, None), 7, keep=True)
    waits = advance(unwatched, sight(canary_ready=False, missing="it loads"), 9)
    failing = sight(outcomes(0, 100), outcomes(900))
    seen, deployment = list[tuple[str, int, str]](), unwatched
    while canary := deployment.canary:
        seen.append((str(canary.phase), canary.share_percent, deployment.digest))
        deployment = advance(deployment, failing, 20_000 * len(seen)).deployment

    assert (unwatched.digest, unwatched.manifest) == (OLD, MODEL)
    assert unwatched.canary == Canary(NEW, MODEL_2, Phase.TAKING_OVER, 0, 7)
    assert waits.deployment == unwatched
    assert seen == [("taking over", 0, OLD), ("settling", 100, NEW), ("leaving", 0, NEW)]
    assert (deployment.digest, deployment.previous_digest) == (NEW, OLD)
    assert deployment.rolled_back is None


@pytest.mark.parametrize(
    ("standing", "keep", "came_to"),
    [
        (SERVING, True, (OLD, Phase.TAKING_OVER, 0)),
        (tried(), True, (OLD, Phase.TAKING_OVER, 10)),
        (tried(Phase.TAKING_OVER, 50), True, (OLD, Phase.TAKING_OVER, 50)),
        (give_up(tried(), "slow", 5), True, (OLD, Phase.TAKING_OVER, 0)),
        (SERVING, False, (NEW, None, 0)),
        (tried(), False, (NEW, Phase.LEAVING, 0)),
        (replace(SERVING, replicas=0), True, (NEW, None, 0)),
        (replace(SERVING, name="n" * 56), True, (NEW, None, 0)),
    ],
    ids=[
        "it serves", "the new one is watched", "the new one takes over", "it was given up",
        "nothing to keep", "nothing to keep of two", "stopped", "no name for both",
    ],
)  # fmt: skip
def test_bundles_change_places_at_once_only_where_nothing_is_kept(
    standing: Deployment, keep: bool, came_to: tuple[str, Phase | None, int]
) -> None:
    after = exchange(standing, NEW, MODEL_2, 9, keep=keep)
    canary = after.canary

    shown = (canary.phase, canary.share_percent) if canary else (None, 0)
    assert (after.digest, *shown) == came_to
    assert OLD in {after.digest, after.previous_digest}


def test_versions_that_cannot_serve_beside_each_other_are_refused() -> None:
    other = wish(NEW, manifest=replace(MODEL_2, chat_template="x"))

    assert "chat template differ" in cannot_share(SERVING, other)
    assert "55 at most" in cannot_share(SERVING, wish(NEW, name="n" * 56))
    assert not cannot_share(SERVING, wish(NEW))
    assert "try again" in settling(replace(tried(Phase.SETTLING), digest=NEW), NEWER)


def node(number: int, *held: tuple[str, str, int]) -> Node:
    replicas = tuple(Replica(name, at, ReplicaState.READY, slots) for name, at, slots in held)
    return Node(f"r.s.n{number}", "r", "s", memory_mib=1_000, slots=100, replicas=replicas)


@given(
    st.sampled_from(Phase),
    st.sampled_from([1, 10, 50]),
    st.integers(1, 4),
    st.sets(st.integers(0, 3)),
    st.sampled_from([1, 4, 16]),
)
def test_the_versions_together_have_what_the_old_one_had(
    phase: Phase, percent: int, replicas: int, loaded: set[int], canary_slots: int
) -> None:
    manifest = replace(MODEL_2, slots=canary_slots)
    canary = Canary(NEW, manifest, phase, percent, 0)
    serves = NEW if phase is Phase.SETTLING else OLD
    deployment = replace(SERVING, digest=serves, replicas=replicas, canary=canary)
    new = ("m--canary", NEW, canary_slots)
    nodes = [
        node(at, ("m", OLD, MODEL.slots), *([new] if at in loaded else []))
        for at in range(replicas)
    ]
    snapshot = expanded(Snapshot(1, (deployment,), tuple(nodes)))
    decided = plan(snapshot)
    routes = joined(decided.routes, snapshot)
    route = routes["m"].canary

    assert set(routes) == {"m"}
    assert len(decided.nodes_of("m")) == replicas
    assert route is not None
    ready = sum(one.ready_slots for one in route.targets)
    old = replicas * MODEL.slots
    if phase is Phase.LEAVING:
        assert route.percent == 0
    elif phase is Phase.SETTLING:
        assert route.percent == 100 or ready < old
    else:
        assert route.percent <= percent
        assert ready * 100 >= route.percent * old


def test_every_step_is_told_once_whoever_took_it() -> None:
    begun = begin(SERVING, wish(NEW), 7, keep=True)
    given_up = give_up(begun, "slow", 9)
    stopped = begin(begun, SERVING, 9, keep=True)
    gone = replace(stopped, canary=None)
    taken_over = replace(tried(Phase.SETTLING, 50), digest=NEW)
    promoted = advance(taken_over, sight(), 9)

    assert news_of(SERVING, begun) == Moved("m", NEW, Phase.OBSERVING, 10, "it was declared", False)
    assert news_of(begun, begin(begun, wish(NEW, replicas=5), 8, keep=True)) is None
    assert news_of(begun, given_up) == Moved("m", NEW, Phase.LEAVING, 0, "slow", True)
    told = news_of(begun, stopped)
    assert told == Moved("m", NEW, Phase.LEAVING, 0, "another version was declared", False)
    assert news_of(stopped, gone) is None
    before = exchange(SERVING, NEW, MODEL_2, 9, keep=True)
    goes_back = replace(before, rolled_back=RolledBack(OLD, "by hand", 9))
    told = news_of(SERVING, goes_back)
    assert told == Moved("m", NEW, Phase.TAKING_OVER, 0, "by hand", False)
    told = news_of(taken_over, promoted.deployment, promoted.reason)
    assert told == Moved("m", NEW, Phase.LEAVING, 0, "2 of 2 replicas have it now", False)
