"""Waiting for a node that a scheduler says is not empty yet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
from busbar_cli.commands import places
from busbar_cli.main import run
from harness.stand_in import StandIn

DRAIN = ["node", "drain", "r1/s1/n1", "--wait", "--grace"]


@dataclass
class Scheduler:
    """Has one node, from which one model goes some time after it was drained."""

    gone_after_s: float = 0.0
    _drained_s: float = 0.0

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        """See Answer."""
        if method == "POST":
            self._drained_s = time.monotonic()
        if path.endswith("/deployments"):
            return 200, {"items": []}
        empty = time.monotonic() - self._drained_s >= self.gone_after_s
        if path.endswith("/nodes"):
            return 200, {"items": [node(empty=empty)]}
        return 200, node(empty=False)


def node(*, empty: bool) -> dict[str, Any]:
    counts = {"finished_count": 3, "handed_back_count": 0}
    return {"node": "r1.s1.n1", "replicas": [{"deployment": "m"}], "empty": empty, **counts}


@pytest.fixture
def scheduler(stand_in: StandIn) -> Scheduler:
    made = Scheduler()
    stand_in(made.answer)
    return made


def test_a_drain_says_how_much_longer_than_its_grace_it_took_and_why(
    scheduler: Scheduler, capsys: pytest.CaptureFixture[str]
) -> None:
    scheduler.gone_after_s = 1.6
    status = run([*DRAIN, "1"])
    late = capsys.readouterr().out.splitlines()[-1]
    scheduler.gone_after_s = 0.0
    in_time_status = run([*DRAIN, "600"])
    in_time = capsys.readouterr().out.splitlines()[-1]

    assert (status, in_time_status) == (0, 0)
    assert late.startswith("Took ")
    assert "s longer than its grace, for unloading; 0 requests" in late
    assert "grace" not in in_time


def test_a_drain_that_does_not_end_says_how_long_was_waited(
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(places, "_LATE_S", 0.5)
    scheduler.gone_after_s = 3600.0
    status = run([*DRAIN, "1"])

    assert status == 4
    assert capsys.readouterr().err == (
        "busbar: r1/s1/n1 not empty after 1.5 s, 0.5 s longer than the grace; what loads or "
        "unloads there may take longer: see busbar node show\n"
    )
