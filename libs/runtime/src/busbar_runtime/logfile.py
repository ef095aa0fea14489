"""Bounded log files that processes write to directly, so nothing is lost when they crash."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 16 * 1024 * 1024
TAIL_BYTES = 64 * 1024


def open_append(path: Path) -> int:
    """A descriptor whose writes always go to the end, also after `bound` cut the file."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def bound(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Move the content aside, replacing what was aside, once the file is larger than allowed.

    Copies and truncates, as the writer keeps its descriptor; a line written in between is lost.
    Where the disk has no room for the copy, the log stays as it is, for the next time.
    """
    with suppress(OSError):
        if path.stat().st_size <= max_bytes:
            return
        path.with_name(path.name + ".1").write_bytes(path.read_bytes())
        os.truncate(path, 0)


def tail(path: Path, lines: int) -> list[str]:
    """The last lines, as far as they lie in the last 64 KiB."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-lines:]
