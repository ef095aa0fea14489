"""What of the model store goes, and what never does."""

from __future__ import annotations

import pytest
from busbar_scheduler.domain.sweeping import (
    SWEPT_AT_ONCE_MAX,
    Ages,
    Inventory,
    Stored,
    Verdict,
    forsaken,
    judge,
    sweep,
)
from hypothesis import given
from hypothesis import strategies as st

AGES = Ages(unused_ms=1_000, condemned_ms=100)
NOW = 10_000


def stored(name: str, *, age_ms: int, condemned: bool = False) -> Stored:
    return Stored(name, 1, NOW - age_ms, 1, f"content of {name}", condemned)


def inventory(objects: list[Stored]) -> Inventory:
    return Inventory(tuple(objects), (), NOW)


@pytest.mark.parametrize(
    ("age_ms", "condemned", "used", "verdict"),
    [
        (0, False, True, Verdict.USED),
        (9_999, False, True, Verdict.USED),
        (999, False, False, Verdict.YOUNG),
        (1_000, False, False, Verdict.CONDEMN),
        (99, True, False, Verdict.WAIT),
        (100, True, False, Verdict.DELETE),
        (0, True, True, Verdict.SPARE),
        (9_999, True, True, Verdict.SPARE),
    ],
)
def test_what_is_unused_is_condemned_and_then_deleted(
    age_ms: int, condemned: bool, used: bool, verdict: Verdict
) -> None:
    names = frozenset({"chunk-a"} if used else set[str]())

    assert judge(stored("chunk-a", age_ms=age_ms, condemned=condemned), names, NOW, AGES) is verdict


def test_one_sweep_writes_a_bounded_number_of_objects_the_oldest_first() -> None:
    unused = [stored(f"chunk-{age}", age_ms=1_000 + age) for age in range(SWEPT_AT_ONCE_MAX)]
    condemned = [stored(f"bundle-{age}", age_ms=100 + age, condemned=True) for age in range(10)]
    decided = sweep(inventory([*unused, *condemned]), frozenset(), AGES)

    assert len(decided.delete) == 10
    assert len(decided.condemn) == SWEPT_AT_ONCE_MAX - 10
    assert decided.condemn[0].name == f"chunk-{SWEPT_AT_ONCE_MAX - 1}"


objects = st.builds(
    stored,
    st.sampled_from([f"chunk-{one}" for one in range(30)]),
    age_ms=st.integers(-100, 5_000),
    condemned=st.booleans(),
)


@given(st.lists(objects, unique_by=lambda one: one.name), st.sets(st.integers(0, 29)))
def test_nothing_that_is_used_or_young_or_not_condemned_is_deleted(
    found: list[Stored], used: set[int]
) -> None:
    names = frozenset(f"chunk-{one}" for one in used)
    decided = sweep(inventory(found), names, AGES)
    seen = [one for verdict in Verdict for one in decided.of(verdict)]

    assert sorted(one.name for one in seen) == sorted(one.name for one in found)
    for one in decided.delete:
        assert one.condemned
        assert one.name not in names
        assert NOW - one.written_unix_ms >= AGES.condemned_ms
    for one in decided.condemn:
        assert one.name not in names
        assert NOW - one.written_unix_ms >= AGES.unused_ms


def test_content_of_no_object_goes_only_after_it_was_seen_for_long() -> None:
    seen = dict[str, int]()

    assert forsaken(["a", "b"], seen, 0, AGES) == []
    assert forsaken(["a"], seen, 500, AGES) == []
    assert forsaken(["a", "b"], seen, 1_000, AGES) == ["a"]
    assert forsaken(["b"], seen, 2_000, AGES) == ["b"]
