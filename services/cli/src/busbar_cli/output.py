"""Answers on standard output, tables or JSON; everything else on standard error."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from busbar_cli.api import Listed
from busbar_cli.failures import CommandError

_STYLES = {
    "ready": "green", "ok": "green", "active": "green", "kept": "green", "completed": "green",
    "progressing": "yellow", "suspect": "yellow", "draining": "yellow", "loading": "yellow",
    "failing": "red", "failed": "red", "unplaceable": "red", "unplaced": "red", "lost": "red",
    "revoked": "dim", "expired": "dim", "stopped": "dim", "asleep": "dim",
}  # fmt: skip


def shown(text: str) -> str:
    """The text with whatever might steer the terminal written out, such as \\x1b."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


HowMany = Annotated[int, Parameter(validator=Number(gte=1))]
"""A number of rows; anything below 1 is wrong usage."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Output:
    """Options of every command."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print JSON and nothing else: amounts in nanos (1e-9 of the currency). Errors stay
    text on standard error."""

    def print(self, answer: Any, human: Any) -> None:
        """Print `answer` as JSON, or what `human` makes of it (a table or text).

        Raises CommandError when it cannot be written, BrokenPipeError when nobody reads on.
        """
        try:
            self._write(answer, human)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(f"{_UNWRITTEN}: {error.strerror}") from error

    def print_list(self, listed: Listed, human: Any) -> None:
        """The same of a list; who sees only its beginning is told how to see more of it."""
        self.print({"items": listed.items}, human)
        if listed.more:
            shown = len(listed.items)
            said = f"there are more than these {shown:,}: say --limit {shown * _MORE_TIMES}"
            err().print(said, style="yellow", soft_wrap=True)

    def _write(self, answer: Any, human: Any) -> None:
        if self.json:
            sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")
            return
        # A table is never squeezed: what is folded or cut cannot be copied.
        widest = Console(highlight=False, width=_WIDEST)
        natural = Measurement.get(widest, widest.options, human).maximum
        console = Console(highlight=False, width=max(out().width, natural))
        with console.capture() as drawn:
            console.print(human, soft_wrap=True)
        # Nor padded: one long cell would have the terminal wrap every other row, too.
        for line in drawn.get().removesuffix("\n").split("\n"):
            sys.stdout.write(f"{_PADDING.sub(_without_spaces, line)}\n")


DEFAULT = Output()
_MORE_TIMES = 10
_WIDEST = 4_000
_BRIEF_CHARS = 100
_PADDING = re.compile(r"(?<! )(?: |\x1b\[[\d;]*m)+$")
"""What ends a line and is not seen, with the colours that end there."""
_UNWRITTEN = "the command was carried out, but its answer cannot be written"


def _without_spaces(padding: re.Match[str]) -> str:
    return padding[0].replace(" ", "")


def out() -> Console:
    """Standard output."""
    return Console(highlight=False)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def drop_unwritten() -> None:
    """Forget what standard output could not take; else Python complains of it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", empty: str = "none"
) -> Table | Text:
    """A plain table; a column whose name ends in ">" is aligned to the right."""
    if not rows:
        return Text(empty, style="dim")
    made = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for column in columns:
        right = column.endswith(">")
        made.add_column(column.rstrip(">"), justify="right" if right else "left", no_wrap=True)
    for row in rows:
        made.add_row(*[_cell(value) for value in row])
    return made


def _cell(value: Any) -> Text:
    text = "" if value is None else str(value)
    return Text(text, style=_STYLES.get(text, ""))


def brief(text: str) -> str:
    """The text in one line that a list has room for; who shows one thing shows all of it."""
    line = " ".join(text.split())
    return line if len(line) <= _BRIEF_CHARS else line[: _BRIEF_CHARS - 1] + "…"


def show_time(unix_ms: float | None) -> str:
    """A moment in UTC, to the second."""
    if not unix_ms:
        return ""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def show_moment(rfc3339: str | None) -> str:
    """A moment that an API gave, in UTC, to the second."""
    if not rfc3339:
        return ""
    return datetime.fromisoformat(rfc3339).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def show_duration(duration_us: float) -> str:
    """A duration in the unit that fits."""
    if duration_us < 1_000:  # noqa: PLR2004
        return f"{duration_us:.0f} µs"
    if duration_us < 1_000_000:  # noqa: PLR2004
        return f"{duration_us / 1_000:.1f} ms"
    return f"{duration_us / 1_000_000:.2f} s"


def show_bytes(size_bytes: int) -> str:
    """A size with a unit."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def show_digest(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    return digest.removeprefix("sha256:")[:12]


def begins(digest: str, shown: str) -> bool:
    """Whether a digest is meant by what `show_digest` showed, or by more or less of it."""
    return digest.removeprefix("sha256:").startswith(shown.removeprefix("sha256:"))


def silent(state: str) -> bool:
    """Whether a node of that state or health is not heard, so that what it does is not known."""
    return state in {"suspect", "lost"}


def show_node(key: str) -> str:
    """region/site/node."""
    return key.replace(".", "/")
