"""`./just simulate`, by its command line: what it prints and draws, and how to see it again."""

from __future__ import annotations

import shlex
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from simulation.fleet.__main__ import again_of, arguments, day_of, main
from simulation.fleet.day import SHORT, SMALL, draw
from simulation.fleet.run import POLICIES

TINY = "--sites 2 --hours 0.05 --sun-hours 0.05 --requests-per-s 2 --seed 3"
SHOWN = (
    *("served", "refused", "queue p50", "p99", "slots busy", "moves", "gap of VTC's bound"),
    "energy",
)
SVG = "{http://www.w3.org/2000/svg}"
CHARTS = 5


def test_a_day_is_a_table_and_a_picture_of_three_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "day.svg"

    broken = main([*TINY.split(), "--out", str(picture)])
    printed = capsys.readouterr().out
    head = next(line for line in printed.splitlines() if "policy" in line)
    table = printed[printed.index(head) :]
    drawn = ET.fromstring(picture.read_text())

    assert broken == 0
    assert [shown for shown in SHOWN if shown not in head] == []
    assert [name for name in POLICIES if f"\n {name} " not in table] == []
    assert "2 sites, 100 nodes" in printed
    assert "seed 3" in printed
    assert len(list(drawn.iter(f"{SVG}polyline"))) == CHARTS * len(POLICIES)


@pytest.mark.parametrize("given", ["", "--size short --seed 7", TINY, "--hours 0.123456789"])
def test_the_line_to_see_it_again_draws_the_same_day(given: str) -> None:
    args = arguments(given.split())
    command, what, *rest = shlex.split(again_of(args))

    assert (command, what) == ("./just", "simulate")
    assert day_of(arguments(rest)) == day_of(args)


@pytest.mark.parametrize(("seed", "size"), [(7, "short"), (50, "small")])
def test_the_days_of_the_tests_are_played_by_their_names(seed: int, size: str) -> None:
    day = day_of(arguments(["--seed", str(seed), "--size", size]))

    assert day == draw(seed, {"short": SHORT, "small": SMALL}[size])
