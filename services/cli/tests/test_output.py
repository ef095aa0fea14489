"""Answers that standard output does not take: a full disk, a reader that went away."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from busbar_cli.api import Listed
from busbar_cli.commands.audit import joules, why_nothing
from busbar_cli.output import DEFAULT, Output, begins, brief, show_digest, table

_COLOUR = re.compile(r"\x1b\[[\d;]*m")

# As `busbar` ends: one command that only prints, through the real entry point.
BUSBAR = """
import sys
from busbar_cli import main
from busbar_cli.output import DEFAULT, Output

def show(*, output: Output = DEFAULT) -> None:
    output.print({"key": "k" * 200_000}, "k" * 200_000)

main.app.command(show)
sys.argv = ["busbar", *sys.argv[1:]]
main.main()
"""


@pytest.mark.parametrize("arguments", [["show"], ["show", "--json"]], ids=" ".join)
def test_a_full_disk_is_told_in_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device, not a path of ours
        ended = subprocess.run(
            [sys.executable, "-c", BUSBAR, *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30,
        )  # fmt: skip

    assert ended.returncode == 1
    assert ended.stderr == (
        "busbar: the command was carried out, but its answer cannot be written: "
        "No space left on device\n"
    )


@pytest.mark.parametrize("arguments", [["show"], ["show", "--json"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_failure(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSBAR, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as busbar:  # fmt: skip
        assert busbar.stdout is not None
        assert busbar.stderr is not None
        busbar.stdout.read(1)
        busbar.stdout.close()
        said = busbar.stderr.read()

    assert (busbar.returncode, said) == (0, "")


def test_a_digest_is_meant_by_what_is_shown_of_it() -> None:
    digest = "sha256:0123456789abcdef"

    assert begins(digest, show_digest(digest))
    assert begins(digest, digest)
    assert begins(digest, "")
    assert not begins(digest, "abcdef")


@pytest.mark.parametrize("terminal", [False, True], ids=["a-pipe", "a-terminal"])
def test_one_long_cell_does_not_widen_the_other_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    if terminal:  # which gets colours, and those end behind the padding
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    long = "no room " * 200
    DEFAULT.print({}, table(["NAME", "REASON"], [["a", long], ["b", "ok"]]))

    written = capsys.readouterr().out
    printed = _COLOUR.sub("", written)

    assert (written != printed) == terminal
    assert printed == f"NAME  REASON\na     {long.rstrip()}\nb     ok\n"


@pytest.mark.parametrize(
    ("text", "listed"),
    [("as it is", "as it is"), ("first\n  second", "first second"), ("x" * 101, "x" * 99 + "…")],
)
def test_a_list_gives_a_reason_one_short_line(text: str, listed: str) -> None:
    assert brief(text) == listed


def test_who_sees_only_the_beginning_of_a_list_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"name": f"one-{number}"} for number in range(50)]
    rows = table(["NAME"], [[one["name"]] for one in items])

    DEFAULT.print_list(Listed(items, more=True), rows)
    some = capsys.readouterr()
    DEFAULT.print_list(Listed(items, more=False), rows)
    all_of_it = capsys.readouterr()
    Output(json=True).print_list(Listed(items, more=True), rows)
    as_json = capsys.readouterr()

    assert some.err == "there are more than these 50: say --limit 500\n"
    assert (all_of_it.out, all_of_it.err) == (some.out, "")
    assert json.loads(as_json.out) == {"items": items}
    assert as_json.err == some.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (False, "3 attempts: 2 not charged, 1 other attempt charged"),
        (True, "the newest 3 attempts: 2 not charged, 1 other attempt charged; there are more"),
    ],
)
def test_a_page_of_leakage_is_not_told_as_all_of_it(said: str, *, more: bool) -> None:
    reasons = ("not_charged", "other_attempt_charged", "not_charged")

    assert why_nothing(Listed([{"reason": reason} for reason in reasons], more)) == said


@pytest.mark.parametrize(
    ("mj", "said"), [(None, "not measured"), (0, "0.0 J"), (1_234_500, "1,234.5 J")]
)
def test_energy_that_no_counter_measured_is_not_shown_as_none(mj: int | None, said: str) -> None:
    assert joules(mj) == said
