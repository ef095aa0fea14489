"""Gathering what gateways say that they carry."""

from __future__ import annotations

from busbar_scheduler.domain.demand import Asked, Carried, Gathering


def test_the_gateways_are_added_up() -> None:
    gathering = Gathering(silent_after_s=4)
    gathering.heard("g1", "a", {"m": Carried(1, 2, 10, 0)}, 0)
    gathering.heard("g2", "a", {"m": Carried(3, 4, 20, 5), "n": Carried(1)}, 0)
    first = gathering.look(0)
    gathering.heard("g1", "a", {"m": Carried(1, 0, 13, 1)}, 1)
    gathering.heard("g1", "a", {"m": Carried(0, 0, 14, 1)}, 2)

    assert first == {"m": Asked(4, 6), "n": Asked(1)}  # what was before we listened is not news
    assert gathering.look(2) == {"m": Asked(3, 4, completed=4, unready=1), "n": Asked(1)}
    assert gathering.look(2) == {"m": Asked(3, 4), "n": Asked(1)}


def test_a_gateway_that_started_again_counts_from_nothing() -> None:
    gathering = Gathering(silent_after_s=4)
    gathering.heard("g1", "a", {"m": Carried(0, 0, 100, 0)}, 0)
    gathering.look(0)
    gathering.heard("g1", "b", {"m": Carried(0, 0, 3, 2)}, 1)

    assert gathering.look(1) == {"m": Asked(completed=3, unready=2)}


def test_silent_gateways_carry_nothing_and_without_any_nothing_is_known() -> None:
    gathering = Gathering(silent_after_s=4)
    gathering.heard("g1", "a", {"m": Carried(1)}, 0)
    gathering.heard("g2", "a", {"m": Carried(2)}, 3)
    gathering.heard("g3", "a", {"m": Carried(4)}, 3)
    gathering.gone("g3")

    assert gathering.look(4) == {"m": Asked(3)}
    assert gathering.look(5) == {"m": Asked(2)}
    assert gathering.look(8) is None


def test_who_has_to_wait_is_told_at_once() -> None:
    gathering = Gathering(silent_after_s=4)
    first = gathering.heard("g1", "a", {"m": Carried(1, 0, 0, 7), "n": Carried(0, 1)}, 0)
    same = gathering.heard("g1", "a", {"m": Carried(1, 0, 5, 7)}, 1)
    refused = gathering.heard("g1", "a", {"m": Carried(1, 0, 5, 8)}, 2)

    assert (first, same, refused) == ({"n"}, set(), {"m"})
