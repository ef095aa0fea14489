"""When one run of an agent may take the name of another one."""

from __future__ import annotations

import pytest
from busbar_node_agent.usecases.claiming import SILENT_S, SILENT_UNHEARD_S, Claimant, Held

OTHER = Held("other", 7)


def claimant(first: Held | None = OTHER) -> Claimant:
    """One that has read the lease at the time 0."""
    made = Claimant(frozenset({"mine", "dead"}))
    made.reads(first, 0.0)
    return made


def heard(one: Claimant, from_s: float, to_s: float) -> None:
    """Others are heard each half second."""
    for half in range(int(from_s * 2) + 1, int(to_s * 2) + 1):
        one.pulse(half / 2)


@pytest.mark.parametrize(
    ("first", "free"),
    [
        (None, True),
        (OTHER, False),
        (Held("other", 7, released=True), True),
        (Held("dead", 7), True),
        (Held("mine", 7), True),
    ],
    ids=["nobody", "another", "released", "dead", "its own"],
)
def test_only_a_run_that_may_live_is_waited_for(first: Held | None, free: bool) -> None:
    assert claimant(first).may_take(0.0) is free
    assert not Claimant().may_take(1e9), "what was not read is not free"


def test_a_holder_that_is_silent_while_others_are_heard_loses_the_name() -> None:
    one = claimant()
    heard(one, 0.0, SILENT_S - 0.5)
    before = one.may_take(SILENT_S - 0.5)
    heard(one, SILENT_S - 0.5, SILENT_S)

    assert (before, one.may_take(SILENT_S), one.alive) == (False, True, False)


def test_a_holder_that_writes_keeps_it_and_is_known_to_live() -> None:
    one = claimant()
    for second in range(1, 60):
        one.reads(Held("other", 7 + second), float(second))
        heard(one, second, second + 0.5)

    assert (one.may_take(60.0), one.alive) == (False, True)


def test_silence_of_the_bus_is_nobodys() -> None:
    one = claimant()
    heard(one, 0.0, 1.0)
    one.pulse(9.0)  # an election is over, and everybody finds back
    soon = one.may_take(9.5)
    heard(one, 9.0, 9.0 + 3.0 + SILENT_S)

    assert (soon, one.may_take(9.0 + 3.0 + SILENT_S)) == (False, True)


def test_without_anybody_else_it_takes_longer() -> None:
    one = claimant()

    assert not one.may_take(SILENT_UNHEARD_S - 0.1)
    assert one.may_take(SILENT_UNHEARD_S)


def test_a_bucket_that_was_emptied_is_no_free_name() -> None:
    one = claimant()
    one.reads(None, 1.0)

    assert not one.may_take(1.0)
    heard(one, 1.0, 1.0 + SILENT_S)
    assert one.may_take(1.0 + SILENT_S)
