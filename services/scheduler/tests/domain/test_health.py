"""Suspect fast, evict slowly."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from busbar_scheduler.domain.fleet import Health
from busbar_scheduler.domain.health import Signs, judge, until_next_change_s

SUSPECT_AFTER = timedelta(seconds=4)
WELL = Signs(silent_s=0.5, draining_s=None, ready=True, reported=True, same_run=True)


@pytest.mark.parametrize(
    ("changes", "health"),
    [
        ({}, Health.OK),
        ({"silent_s": 3.9}, Health.OK),
        ({"silent_s": 4.0}, Health.SUSPECT),
        ({"silent_s": 59.9}, Health.SUSPECT),
        ({"silent_s": 60.0}, Health.LOST),
        ({"silent_s": 60.0, "reported": False}, Health.LOST),
        ({"reported": False}, Health.UNREPORTED),
        ({"draining_s": 0.0}, Health.DRAINING),
        ({"draining_s": 60.0}, Health.EVICTED),
        ({"draining_s": 1.0, "silent_s": 5.0}, Health.SUSPECT),
        ({"same_run": False}, Health.RESTARTING),
        ({"ready": False}, Health.NOT_READY),
    ],
)
def test_the_worst_sign_decides(changes: dict[str, float], health: Health) -> None:
    assert judge(replace(WELL, **changes), SUSPECT_AFTER) is health  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("silent_s", "draining_s", "wait_s"),
    [(1.0, None, 3.0), (4.0, None, 56.0), (60.0, None, float("inf")), (1.0, 58.0, 2.0)],
)
def test_the_next_change_is_known(silent_s: float, draining_s: float | None, wait_s: float) -> None:
    signs = replace(WELL, silent_s=silent_s, draining_s=draining_s)

    assert until_next_change_s(signs, SUSPECT_AFTER) == pytest.approx(wait_s)
