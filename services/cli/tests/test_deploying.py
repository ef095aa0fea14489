"""A deployments file of which the scheduler takes a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from busbar_cli.commands.deployments import remarks, replica_rows
from busbar_cli.deployment_file import Declared, RolloutTerms
from busbar_cli.main import run
from harness.stand_in import StandIn


def answer(method: str, path: str) -> tuple[int, Any]:
    """Of a scheduler that finds nothing wrong, and loses its lead before `third` is declared. What
    `m` goes back to can never fit, and `small` goes back to what can."""
    if path.endswith("/rollback"):
        return 200, going_back("no room" if "/m/" in path else "")
    if path.endswith("/check"):
        return 204, None
    if path.endswith("/third"):
        return 503, {"error": {"message": "no leader"}}
    if method == "PUT":
        bad = path.endswith("/bad")
        return 200, {"name": "bad", "bundle": "sha256:a", "held_back": "it failed" if bad else ""}
    served = {"bundle_version": "1", "status": "ready", "reason": "", **COUNTS}
    return 200, {"items": [{**view("sha256:a"), **served, "name": "bad"}]}


COUNTS = {"ready_replicas": 1, "wanted_replicas": 1, "replica_states": list[Any]()}


@pytest.fixture
def scheduler(stand_in: StandIn) -> None:
    stand_in(answer)


@pytest.mark.usefixtures("scheduler")
def test_what_fails_on_the_way_is_said_with_what_stands_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "models.yaml"
    names = ("first", "second", "third", "fourth", "fifth")
    file.write_text("".join(f"- {{name: {name}, bundle: simple}}\n" for name in names))
    status = run(["deploy", str(file)])
    _, err = capsys.readouterr()

    assert status == 4
    assert err == (
        "busbar: third: no leader\nDeclared before it: first, second. Not tried: fourth, fifth.\n"
    )


@pytest.mark.parametrize("options", [[], ["--wait"]])
@pytest.mark.usefixtures("scheduler")
def test_what_went_back_and_is_not_tried_again_fails_and_says_how_to_try_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("- {name: bad, bundle: simple, rollout: {}}\n")
    status = run(["deploy", str(file), *options])
    said = capsys.readouterr().err

    assert status == 1
    assert said.endswith(
        "busbar: bad: a serves on: the version declared was rolled back on the same terms: "
        f"it failed\nTo try it once more: busbar deploy {file} --again\n"
    )


def going_back(never: str) -> dict[str, Any]:
    """`m` as it is served while the bundle before is on its way."""
    shown = view("sha256:a", canary="sha256:b", phase="taking over", never=never)
    return {**shown, **COUNTS, "bundle_version": "1", "status": "ready", "reason": ""}


@pytest.mark.usefixtures("scheduler")
def test_what_going_back_waits_for_is_said_and_what_never_comes_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fits = run(["deploy", "rollback", "small"])
    waiting = capsys.readouterr()
    never = run(["deploy", "rollback", "m"])
    failed = capsys.readouterr()

    begun = "m: a serves until b is ready beside it; where there is no room for both: --at-once\n"
    assert (fits, waiting.err) == (0, begun)
    assert (never, failed.err) == (1, begun + "busbar: m: b can never take over: no room\n")


def view(
    bundle: str,
    *,
    rolled_back: str = "",
    canary: str = "",
    phase: str = "observing",
    never: str = "",
) -> dict[str, Any]:
    back = {"bundle": rolled_back, "reason": "it failed"} if rolled_back else None
    tried = {"bundle": canary, "phase": phase, "never": never} if canary else None
    rollout = {"canary": tried, "rolled_back": back}
    return {"name": "m", "bundle_name": "simple", "bundle": bundle, "rollout": rollout}


@pytest.mark.parametrize(
    ("wanted", "before", "after", "said"),
    [
        (Declared(name="m", bundle="simple"), [], view("sha256:a"), []),
        (Declared(name="m", bundle="simple"), [view("sha256:a")], view("sha256:a"), []),
        (
            Declared(name="m", bundle="simple"),
            [view("sha256:a")],
            view("sha256:a", canary="sha256:b", phase="taking over"),
            ["m: a serves until b is ready beside it; "],
        ),
        (
            Declared(name="m", bundle="simple", at_once=True),
            [view("sha256:a")],
            view("sha256:b", canary="sha256:a", phase="leaving"),
            [],
        ),
        (
            Declared(name="m", bundle="simple", rollout=RolloutTerms()),
            [view("sha256:a")],
            view("sha256:a", canary="sha256:b"),
            [],
        ),
        (
            Declared(name="m", bundle="simple", rollout=RolloutTerms()),
            [view("sha256:a", rolled_back="sha256:b")],
            view("sha256:a", canary="sha256:b", phase="leaving"),
            ["m: the newest simple is b, which was rolled back from m (it failed)"],
        ),
        (
            Declared(name="m", bundle="simple"),
            [{**view("sha256:a", rolled_back="sha256:b"), "name": "other"}],
            view("sha256:b"),
            ["m: the newest simple is b, which was rolled back from other (it failed)"],
        ),
        (
            Declared(name="m", bundle="sha256:b"),
            [{**view("sha256:a", rolled_back="sha256:b"), "name": "other"}],
            view("sha256:b"),
            [],
        ),
    ],
    ids=[
        "new",
        "same",
        "replaced",
        "at once",
        "tried",
        "tried again",
        "given up elsewhere",
        "by digest",
    ],
)
def test_what_may_not_have_been_meant_is_said(
    wanted: Declared, before: list[dict[str, Any]], after: dict[str, Any], said: list[str]
) -> None:
    lines = remarks([wanted], before, [after])

    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_replicas_without_a_node_that_are_alike_take_one_line() -> None:
    full = {"node": "", "state": "unplaced", "reason": "no room"}
    cordoned = {"node": "", "state": "unplaced", "reason": "r1/s2/n1 is cordoned"}
    placed = {"node": "r1.s1.n1", "state": "ready", "reason": ""}

    assert replica_rows([placed, full, cordoned, *[full] * 996]) == [
        ["r1/s1/n1", "ready", ""],
        ["- (997 replicas)", "unplaced", "no room"],
        ["-", "unplaced", "r1/s2/n1 is cordoned"],
    ]
