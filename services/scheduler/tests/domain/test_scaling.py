"""How many replicas demand asks for, by a clock that is only a number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random

import pytest
from busbar_scheduler.domain.autoscaling import Autoscaler
from busbar_scheduler.domain.demand import Asked
from busbar_scheduler.domain.fleet import Assignment, Deployment, Route, Snapshot, Target
from busbar_scheduler.domain.manifest import Manifest, Task
from busbar_scheduler.domain.scaling import Scale, Sight, capacity, replicas_for
from hypothesis import given, settings
from hypothesis import strategies as st

DIGEST = "sha256:" + "a" * 64
MODEL = Deployment(
    "m",
    DIGEST,
    Manifest("m", "1", Task.TENSOR, slots=4, memory_mib=100, price_class="p"),
    replicas=1,
    max_replicas=10,
    scale_down_after_s=300,
)
SLEEPER = replace(MODEL, replicas=0)


@dataclass
class Watched:
    """A deployment that gets what is wanted of it at once, seen each second."""

    deployment: Deployment = MODEL
    scale: Scale = field(default_factory=lambda: Scale(1))
    second: int = 0
    described: bool = True
    trail: list[int] = field(default_factory=list[int])

    def see(self, seconds: int = 1, in_flight: int = 0, queued: int = 0, completed: int = 0) -> int:
        """So many seconds of the same; what is wanted after them."""
        for _ in range(seconds):
            self.second += 1
            asked = Asked(in_flight, queued, completed)
            there = self.scale.wanted
            sight = Sight(asked, there, there, self.described)
            self.scale.step(self.deployment, sight, 1.0, self.second // 60)
            self.trail.append(self.scale.wanted)
        return self.scale.wanted


@given(load=st.floats(0, 5_000), slots=st.integers(1, 64))
def test_the_fewest_replicas_that_are_meant_to_carry_a_load(load: float, slots: int) -> None:
    found = replicas_for(load, slots)

    assert capacity(found, slots) >= load - 1e-6
    assert found == 0 or capacity(found - 1, slots) < load


@pytest.mark.parametrize(
    ("load", "slots", "replicas"),
    [(0, 4, 0), (0.1, 4, 1), (1, 1, 1), (4, 4, 1), (5, 4, 2), (7, 8, 1), (8, 8, 2), (64, 8, 10)],
)
def test_a_fifth_of_the_slots_in_whole_slots_is_left_free(
    load: float, slots: int, replicas: int
) -> None:
    assert replicas_for(load, slots) == replicas


def test_a_burst_is_answered_within_seconds() -> None:
    model = Watched()
    model.see(600, in_flight=1)

    assert model.see(4, in_flight=4, queued=16) >= 4
    assert model.see(20, in_flight=4, queued=16) == 5


def test_it_at_most_doubles_in_fifteen_seconds() -> None:
    model = Watched(replace(MODEL, max_replicas=1_000))
    model.see(10, in_flight=1)
    grown = [model.see(in_flight=4, queued=10_000) for _ in range(46)]

    assert max(grown[:14]) == 1 + 4
    assert max(grown[:29]) == 2 * (1 + 4)
    assert grown[45] == 8 * (1 + 4)


def test_it_goes_down_slowly_and_only_after_the_declared_time() -> None:
    model = Watched()
    model.see(60, in_flight=32)
    assert model.scale.wanted == 10
    model.trail.clear()
    model.see(900, in_flight=1)

    assert set(model.trail[:295]) == {10}
    assert model.trail[310] < 10
    assert model.trail[-1] == 1
    steps = [before - after for before, after in pairwise(model.trail)]
    assert all(0 <= step <= 2 for step in steps)
    changes = [at for at, step in enumerate(steps) if step]
    assert all(later - at >= 59 for at, later in pairwise(changes))


def test_a_load_that_swings_around_a_boundary_does_not_make_it_flap() -> None:
    model = Watched(replace(MODEL, scale_down_after_s=10))
    model.see(60, in_flight=4)
    model.see(1, in_flight=5, queued=1)
    model.see(30, in_flight=5)
    model.trail.clear()
    for _ in range(20):
        model.see(15, in_flight=4)
        model.see(15, in_flight=5)

    assert len(set(model.trail)) == 1


def test_short_requests_that_wait_do_not_cost_a_slot_each() -> None:
    model = Watched()
    model.see(120, in_flight=3, completed=300)  # each takes 10 ms

    assert model.scale.service_s == pytest.approx(0.01)
    assert model.see(30, in_flight=3, completed=300, queued=100) == 1


def test_without_requests_it_sleeps_after_the_declared_time_and_not_before() -> None:
    model = Watched(replace(SLEEPER, scale_down_after_s=30))
    model.see(60, in_flight=1)
    model.trail.clear()
    model.see(60)

    assert set(model.trail[:30]) == {1}
    assert model.trail[-1] == 0
    assert model.scale.reason == "nothing is asked"


@pytest.mark.parametrize(
    "asked", [Asked(queued=1), Asked(unready=1), Asked(completed=1), Asked(in_flight=1)]
)
def test_whatever_is_asked_wakes_it(asked: Asked) -> None:
    scale = Scale(0)
    demand = scale.step(SLEEPER, Sight(asked, 0, 0, described=True), 1.0, 0)

    assert demand.replicas == 1
    assert demand.requests_per_replica_h == 0  # so that its first replica is not weighed


def test_it_is_loaded_once_so_that_its_tensors_are_known() -> None:
    model = Watched(replace(SLEEPER, scale_down_after_s=15), Scale(0), described=False)
    wanted = model.see(100)
    model.described = True

    assert wanted == 1
    assert model.see(20) == 0


def test_how_long_loading_took_is_remembered() -> None:
    scale = Scale(0)
    estimated = scale.loading_s(SLEEPER)
    waiting = Asked(queued=1)
    for second in range(60):
        placed, ready = int(second >= 10), int(second >= 50)
        demand = scale.step(SLEEPER, Sight(waiting, placed, ready, described=True), 1.0, 0)

    assert estimated == 5
    assert scale.loading_s(SLEEPER) == 41  # to the second in which it was placed
    assert demand.loading_ms == 41_000  # pyright: ignore[reportPossiblyUnboundVariable]


def test_who_comes_back_when_told_finds_it_ready() -> None:
    hasty, scale = replace(SLEEPER, scale_down_after_s=1), Scale(0)
    scale.measured_loading_s = 20.0
    scale.step(hasty, Sight(Asked(unready=1), 0, 0, described=True), 1.0, 0)
    for second in range(20 + 10):
        ready = int(second >= 20)
        scale.step(hasty, Sight(Asked(), 1, ready, described=True), 1.0, 0)

        assert scale.wanted == 1


def woken(scale: Scale, ready_after_s: int, seconds: int, *, again_s: int = 0) -> list[int]:
    """What is wanted in each second after one request, and another some seconds later."""
    hasty, wanted = replace(SLEEPER, scale_down_after_s=1), list[int]()
    placed_s = 0
    for second in range(seconds):
        asked = Asked(unready=int(second in {0, again_s}))
        placed = scale.wanted
        placed_s = placed_s + 1 if placed else 0
        ready = int(placed_s > ready_after_s)
        scale.step(hasty, Sight(asked, placed, ready, described=True), 1.0, 0)
        wanted.append(scale.wanted)
    return wanted


@pytest.mark.parametrize("took_s", [5, 20])
def test_what_loads_longer_than_it_used_to_is_not_given_up_meanwhile(took_s: int) -> None:
    scale = Scale(0, measured_loading_s=1.0)
    wanted = woken(scale, ready_after_s=took_s, seconds=took_s + 60)

    assert set(wanted[: took_s + 2]) == {1}
    assert wanted[-1] == 0
    assert scale.loading_s(SLEEPER) > took_s / 2


def test_what_is_never_ready_is_given_up_until_it_is_asked_for_again() -> None:
    scale = Scale(0, measured_loading_s=1.0)
    wanted = woken(scale, ready_after_s=1_000, seconds=200, again_s=100)
    given_up_s = wanted.index(0)

    assert 3 * 5 + 10 <= given_up_s < 60  # 5 s: as estimated, where the files are not there yet
    assert wanted[99:101] == [0, 1]
    assert wanted[-1] == 0


def test_a_replica_that_fails_meanwhile_is_not_taken_for_one_that_loads() -> None:
    scale = Scale(1)
    for ready in (1, 0, 0, 0, 1):
        scale.step(SLEEPER, Sight(Asked(in_flight=1), 1, ready, described=True), 1.0, 0)

    assert scale.measured_loading_s is None


def test_an_outage_is_not_taken_for_silence() -> None:
    model = Watched(replace(SLEEPER, scale_down_after_s=30))
    model.see(60, in_flight=1)
    sight = Sight(Asked(), 1, 1, described=True)
    model.scale.step(model.deployment, sight, elapsed_s=3_600, minute=61)

    assert model.scale.wanted == 1


def test_what_is_usual_soon_is_there_before_it_is_asked() -> None:
    model = Watched(replace(MODEL, scale_down_after_s=60))

    def hour(until_minute: int = 60) -> None:
        for minute in range(until_minute):
            busy = 30 <= minute < 40
            model.see(60, in_flight=24 if busy else 1)

    for _ in range(4):
        hour()
    hour(29)

    assert model.scale.wanted >= 4
    assert "are usual soon" in model.scale.reason


@settings(max_examples=50)
@given(
    loads=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 2_000), st.integers(0, 500)), max_size=30
    ),
    least=st.integers(0, 5),
    more=st.integers(1, 20),
    down_after_s=st.integers(1, 20),
)
def test_never_beyond_the_bounds_nor_by_more_than_a_step(
    loads: list[tuple[int, int, int]], least: int, more: int, down_after_s: int
) -> None:
    deployment = replace(
        MODEL, replicas=least, max_replicas=least + more, scale_down_after_s=down_after_s
    )
    model = Watched(deployment, Scale(least, measured_loading_s=0.5))
    for in_flight, queued, completed in loads:
        before = model.scale.wanted
        model.see(3, in_flight, queued, completed)

        assert least <= model.scale.wanted <= least + more
        assert model.scale.wanted <= max(2 * before, before + 4) * 2
    model.see(down_after_s + 10)
    assert model.scale.wanted < least + more or not loads
    model.see(down_after_s // 5 * 30 + 60)
    assert model.scale.wanted == least


def snapshot(deployment: Deployment, placed: int, ready: int) -> Snapshot:
    route = Route(
        deployment.name,
        DIGEST,
        deployment.manifest,
        (Target("r1", ready * 4, ready),) if ready else (),
        (),
        b"metadata",
        b"config",
        0,
        "",
    )
    held = (Assignment(deployment.name, DIGEST, 4),)
    placements = {f"r1.s1.n{at}": held for at in range(placed)}
    return Snapshot(1, (deployment,), placements=placements, routes={deployment.name: route})


def test_after_a_restart_nothing_goes_before_the_declared_time_has_passed() -> None:
    autoscaler, there = Autoscaler(), snapshot(SLEEPER, placed=5, ready=5)
    wanted = list[int]()
    for second in range(320):
        autoscaler.step(there, {}, float(second), 0)
        wanted.append(autoscaler.demands["m"].replicas)

    assert set(wanted[:300]) == {5}
    assert wanted[-1] == 4


def test_while_no_gateway_is_heard_of_everything_stays() -> None:
    autoscaler, there = Autoscaler(), snapshot(SLEEPER, placed=2, ready=2)
    for second in range(1_000):
        autoscaler.step(there, None, float(second), 0)

    assert autoscaler.demands["m"].replicas == 2


def test_what_is_not_scaled_has_no_demand() -> None:
    autoscaler = Autoscaler()
    autoscaler.step(snapshot(SLEEPER, 1, 1), {}, 0.0, 0)
    autoscaler.step(snapshot(replace(MODEL, max_replicas=1), 1, 1), {}, 1.0, 0)

    assert autoscaler.demands == {}
    assert autoscaler.reason("m") == ""


def test_small_changes_of_the_rate_leave_a_plan_as_it_is() -> None:
    told = set[int]()
    model = Watched()
    model.see(300, in_flight=2, completed=20)
    for second in range(120):
        sight = Sight(Asked(2, 0, 20 + second % 3), 1, 1, described=True)
        told.add(id(model.scale.step(MODEL, sight, 1.0, model.second // 60)))

    assert len(told) == 1


@dataclass
class Served:
    """Customers, a gateway that lets in what the slots take, replicas that load for 20 s."""

    deployment: Deployment
    scale: Scale
    dice: Random
    waiting: int = 0
    ends: list[float] = field(default_factory=list[float])
    loading: list[int] = field(default_factory=list[int])
    """When replicas that are not ready yet will be."""
    ready: int = 0

    def run(self, seconds: range, rate: float, service_s: float) -> list[int]:
        """So many arrivals a second; what was wanted in each."""
        wanted = list[int]()
        for second in seconds:
            self.waiting += sum(self.dice.random() < rate / 100 for _ in range(100))
            done = sum(end <= second for end in self.ends)
            self.ends = [end for end in self.ends if end > second]
            free = self.ready * self.deployment.manifest.slots - len(self.ends)
            started = max(0, min(free, self.waiting))
            self.waiting -= started
            self.ends += [second + self.dice.expovariate(1 / service_s) for _ in range(started)]
            self.ready += sum(at <= second for at in self.loading)
            self.loading = [at for at in self.loading if at > second]
            asked = Asked(len(self.ends), self.waiting, done)
            there = self.ready + len(self.loading)
            sight = Sight(asked, there, self.ready, described=True)
            target = self.scale.step(self.deployment, sight, 1.0, second // 60).replicas
            self.loading += [second + 20] * max(0, target - there)
            excess = max(0, there - target)
            self.loading, self.ready = self.loading[excess:], min(self.ready, target)
            wanted.append(target)
        return wanted


@pytest.mark.parametrize("seed", range(3))
def test_with_customers_who_come_at_random_it_settles_and_nobody_waits_for_long(seed: int) -> None:
    served = Served(replace(SLEEPER, max_replicas=30), Scale(0), Random(seed))
    first = served.run(range(300), rate=10, service_s=2.0)
    left_waiting = served.waiting
    later = served.run(range(300, 2_400), rate=10, service_s=2.0)
    night = served.run(range(2_400, 4_200), rate=0, service_s=2.0)

    assert first[0] >= 1
    assert left_waiting == 0
    changes = sum(before != after for before, after in pairwise(later[900:]))
    assert changes <= 4
    assert 7 <= later[-1] <= 11
    assert night[-1] == 0
