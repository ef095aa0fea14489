"""What recurs in a process recurs at the same moments."""

from __future__ import annotations

import asyncio

import pytest
from busbar_messaging.background import rest_s


@pytest.mark.parametrize(
    ("now_s", "every_s", "expected_s"),
    [
        (12.3, 1.0, 0.7),
        (13.0, 1.0, 1.0),
        (13.25, 1.5, 0.25),
        (5.1, 0.1, 0.1),  # 5.1 % 0.1 is just under 0.1
        (12.999, 1.0, 1.001),  # woken a little early: this beat was heard
        (12.99, 1.0, 0.01),
    ],
)
async def test_the_rest_ends_at_a_multiple(
    monkeypatch: pytest.MonkeyPatch, now_s: float, every_s: float, expected_s: float
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    found_s = rest_s(every_s)
    monkeypatch.undo()

    assert found_s == pytest.approx(expected_s, abs=1e-9)


@pytest.mark.parametrize("off_by_s", [-0.001, 0.0, 0.004], ids=["early", "on time", "late"])
async def test_each_beat_is_heard_once(monkeypatch: pytest.MonkeyPatch, off_by_s: float) -> None:
    now_s, every_s = 5.0, 0.1
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s)
    heard: list[int] = []
    for _ in range(100):
        now_s += rest_s(every_s) + off_by_s
        heard.append(round(now_s / every_s))
    monkeypatch.undo()

    assert heard == list(range(51, 151))
