"""docs/benchmarks.md: each benchmark writes its own section and leaves the others' alone."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPO = Path(__file__).resolve().parents[2]
REPORT = REPO / "docs" / "benchmarks.md"
_HEADING = "\n## "
_WIDTH = 200
"""Of a console that is a file: no column is cut."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--no-report", action="store_true", help=f"leave docs/{REPORT.name} alone")
    return made


def machine() -> str:
    """What it was measured on."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def put_table(
    title: str, how: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, written: bool
) -> None:
    """Print a table, and write it as the section of this title where that is wanted."""
    shown = Table(title=title, caption=how, caption_justify="left")
    for column in head:
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(shown)
    if written:
        REPORT.write_text(with_section(REPORT.read_text(), title, [how, "", *_table(head, rows)]))


def with_section(report: str, title: str, lines: Sequence[str]) -> str:
    """The report with this section in the place of the one of the same title, else at its end."""
    first, *sections = report.rstrip("\n").split(_HEADING)
    made = "\n".join([title, "", *lines, ""])
    found = [at for at, section in enumerate(sections) if section.partition("\n")[0] == title]
    if found:
        sections[found[0]] = made
    else:
        sections.append(made)
    return _HEADING.join(part.strip("\n") + "\n" for part in [first, *sections])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
