"""Waiting for deployments whose new versions are tried first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from busbar_cli.api import Json
from busbar_cli.failures import CommandError
from busbar_cli.waiting import Patience, wait_until_ready

OLD, NEW = "sha256:01", "sha256:02"
BACK = {"bundle": NEW, "reason": "9 of its 9 requests failed", "at_unix_ms": 1}


def view(phase: str = "", rolled_back: Json | None = None) -> Json:
    canary = {"bundle": NEW, "phase": phase, "percent": 10, "reason": "watched 3 of 120 s"}
    rollout = {"canary": canary if phase else None, "rolled_back": rolled_back}
    one: dict[str, Any] = {"name": "m", "status": "ready", "reason": "", "rollout": rollout}
    return {**one, "ready_replicas": 1, "wanted_replicas": 1, "replica_states": []}


def wait(*course: Json, timeout_s: float = 60.0) -> list[Json]:
    looks: Iterator[Json] = iter(course)
    patience = Patience(started_at=time.monotonic(), timeout_s=timeout_s)
    return wait_until_ready(lambda: [next(looks)], patience)


def test_it_waits_until_the_new_version_has_taken_over() -> None:
    assert wait(view("settling"), view("leaving"), view()) == [view()]


def test_it_fails_when_the_new_version_is_rolled_back() -> None:
    with pytest.raises(CommandError, match="m was rolled back: 9 of its 9 requests failed"):
        wait(view("observing"), view("leaving", BACK))


def test_what_was_rolled_back_before_does_not_matter() -> None:
    assert wait(view(rolled_back=BACK)) == [view(rolled_back=BACK)]


def test_of_replicas_that_failed_it_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    failed = {
        "node": "r1.s1.n1",
        "state": "failed",
        "reason": "load failed:\n  [/weights] is empty",
    }
    states = [failed, {**failed, "node": "r1.s2.n1"}, {**failed, "state": "loading", "reason": ""}]
    wait({**view(), "status": "progressing", "replica_states": states}, view())

    assert capsys.readouterr().err.startswith(
        "1 of 1 replicas ready; m failed/loading (load failed: [/weights] is empty)\n"
    )


def test_when_time_is_up_it_says_what_the_rollout_waits_for() -> None:
    with pytest.raises(CommandError, match=r"observing: watched 3 of 120 s"):
        wait(view("observing"), timeout_s=0.0)
