"""The house stays easy to read: sizes, names and leftovers."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FUNCTION_LINES_MAX, MODULE_LINES_MAX = 70, 500
EMPTY_NAMES = {"utils", "util", "common", "core", "helpers", "misc", "base", "manager"}
LEFTOVER = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
GENERATED = ("libs/contracts/src/", "typings/")


def tracked(suffix: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", f"*{suffix}"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [
        REPO / name for name in listed if not name.startswith(GENERATED) and (REPO / name).is_file()
    ]


SOURCES = tracked(".py")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(REPO)) for path in paths]


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_modules_and_functions_fit_a_reader(path: Path) -> None:
    text = path.read_text()
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [
        f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= FUNCTION_LINES_MAX
    ]

    assert text.count("\n") <= MODULE_LINES_MAX
    assert long == []
    assert path.stem not in EMPTY_NAMES
    assert LEFTOVER.findall(text) == []


def test_no_test_sleeps() -> None:
    allowed = REPO / "tests" / "harness" / "polling.py"
    tests = [
        p for p in SOURCES if "tests" in p.parts and p != allowed and "benchmarks" not in p.parts
    ]
    sleepers = [p for p in tests if re.search(r"\b(asyncio|time)\.sleep\(", p.read_text())]

    assert names(sleepers) == []


def test_no_lock_file_holds_an_address() -> None:
    locks = [*tracked(".lock"), *tracked("package-lock.json")]
    addressed = [p for p in locks if re.search(r"https?://", p.read_text(errors="ignore"))]

    assert locks
    assert names(addressed) == []


def test_uv_lock_is_not_tracked() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "uv.lock"], cwd=REPO, capture_output=True, text=True, check=True
    )

    assert listed.stdout == ""


def test_each_service_says_what_it_owns() -> None:
    services = sorted(p.parent for p in REPO.glob("services/*/pyproject.toml"))
    missing = [p.name for p in services if not (p / "README.md").is_file()]

    assert len(services) >= 6
    assert missing == []
