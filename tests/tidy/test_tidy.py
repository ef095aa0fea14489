"""House rules that no linter knows; see "Habits" and "Refuse" in the style guide."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
GENERATED = ("libs/contracts/src/",)
MAX_FUNCTION_LINES, MAX_MODULE_LINES = 70, 500
REFUSED_NAMES = {"utils", "common", "core", "helpers", "misc", "base", "manager"}
UNFINISHED = re.compile(r"\b(TODO|FIXME|NotImplementedError)\b|#.*\bXXX\b")  # XXX: a currency too


@cache
def tracked(pattern: str) -> tuple[Path, ...]:
    """Files of ours that git knows, or will with the next commit, less generated ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern],
        cwd=REPO, check=True, capture_output=True, text=True,
    )  # fmt: skip
    names = [name for name in listed.stdout.splitlines() if not name.startswith(GENERATED)]
    return tuple(path for path in (REPO / name for name in names) if path.is_file())


def test_no_module_is_named_for_nothing_in_particular() -> None:
    named = [path for path in tracked("*.py") if path.stem in REFUSED_NAMES]

    assert named == []


def test_modules_and_functions_can_be_read_at_a_sitting() -> None:
    too_long = [problem for path in tracked("*.py") for problem in lengths(path)]

    assert too_long == []


def lengths(path: Path) -> Iterator[str]:
    """One line for the module, if it is too long, and for each function that is."""
    text, name = path.read_text(), path.relative_to(REPO)
    if (lines := text.count("\n")) > MAX_MODULE_LINES:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{name}: {node.name} has {length} lines"


@pytest.mark.parametrize("pattern", ["*.py", "*.proto", "*.sql", "*.sh", "justfile"])
def test_nothing_is_left_unfinished(pattern: str) -> None:
    unfinished = [
        f"{path.relative_to(REPO)}: {match.group()}"
        for path in tracked(pattern)
        if path != Path(__file__) and (match := UNFINISHED.search(path.read_text()))
    ]

    assert unfinished == []


def test_tests_poll_instead_of_sleeping() -> None:
    # A zero sleep yields to the event loop; a long one is a process that does nothing else.
    sleeping = re.compile(r"\b(time|asyncio)\.sleep\((?!0\)|600\))")
    asleep = [
        str(path.relative_to(REPO))
        for path in tracked("*/test_*.py")
        if path != Path(__file__) and sleeping.search(path.read_text())
    ]

    assert asleep == []


def test_services_end_their_background_work_for_certain() -> None:
    # One cancel() may be swallowed, see busbar_messaging.background: then a service never stops.
    once = [
        str(path.relative_to(REPO))
        for path in tracked("services/*/main.py")
        if re.search(r"\.cancel\(\)", path.read_text())
    ]

    assert len(tracked("services/*/main.py")) > 1
    assert once == []


def test_lock_files_name_no_address() -> None:
    address = re.compile(r"[a-z+]+://|file:|^-", re.MULTILINE)
    addressed = [
        str(path.relative_to(REPO))
        for path in tracked("*.lock")
        if address.search(path.read_text())
    ]

    assert tracked("*.lock")
    assert addressed == []


def test_every_service_and_library_describes_itself() -> None:
    services = {path.parent for path in tracked("services/*/pyproject.toml")}
    silent = sorted(
        str(path.relative_to(REPO)) for path in services if not (path / "README.md").exists()
    )

    assert silent == []


def test_each_decision_has_a_number_of_its_own_and_says_it() -> None:
    decisions = sorted((REPO / "docs" / "decisions").glob("*.md"))
    numbers = [path.name[:4] for path in decisions]
    heads = [path.read_text().partition(". ")[0] for path in decisions]

    assert len(set(numbers)) == len(numbers)
    assert heads == [f"# {int(number)}" for number in numbers]
