"""When a version is surely worse than another, and how what gateways counted adds up."""

from __future__ import annotations

from random import Random

from busbar_scheduler.domain.comparing import Outcomes, Tally, worse
from busbar_scheduler.domain.rollouts import Rollout
from counted import outcomes
from hypothesis import given
from hypothesis import strategies as st

TERMS = Rollout(min_samples=20)


@given(st.integers(0, 2**32), st.floats(0, 0.3))
def test_versions_that_fail_alike_are_hardly_ever_told_apart(seed: int, share: float) -> None:
    random = Random(seed)
    wrong = 0
    for _ in range(20):
        failed = [sum(random.random() < share for _ in range(count)) for count in (60, 300)]
        canary, stable = outcomes(60 - failed[0], failed[0]), outcomes(300 - failed[1], failed[1])
        wrong += bool(worse(canary, stable, Rollout(max_error_ratio=0.05)))

    assert wrong <= 1


@given(st.integers(20, 500), st.integers(1, 500), st.integers(0, 100))
def test_one_more_failure_never_makes_a_version_look_better(
    count: int, more: int, failed: int
) -> None:
    stable, failed = outcomes(200, 2), min(failed, count)
    then = worse(outcomes(count - failed, failed), stable, TERMS)
    now = worse(outcomes(max(0, count - failed - more), min(count, failed + more)), stable, TERMS)

    assert not then or now


def test_counts_of_gateways_add_up_across_their_restarts() -> None:
    tally, key = Tally(), ("m", "sha256:02")
    tally.heard("g1", "a", {key: outcomes(5)}, 0.0)
    tally.heard("g1", "a", {key: outcomes(7)}, 0.0)
    tally.heard("g1", "b", {key: outcomes(2)}, 0.0)
    tally.heard("g2", "a", {}, 0.0)
    tally.heard("g2", "a", {key: outcomes(3)}, 0.0)
    tally.heard("g2", "a", {key: outcomes(1)}, 0.0)

    assert tally.of(*key).answered == 2 + 2 + 3 + 1
    tally.keep(frozenset())
    assert tally.of(*key) == Outcomes()


def test_a_gateway_that_died_without_goodbye_is_forgotten_and_its_counts_stay() -> None:
    tally, key = Tally(), ("m", "sha256:02")
    tally.heard("g1", "a", {}, 0.0)
    tally.heard("g1", "a", {key: outcomes(5)}, 1.0)
    tally.heard("g2", "a", {}, 602.0)
    tally.heard("g1", "a", {key: outcomes(9)}, 603.0)

    assert tally.of(*key).answered == 5
