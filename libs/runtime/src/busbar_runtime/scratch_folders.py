"""Removes the scratch folders that killed Tritons left behind.

Triton's Python backend makes `/tmp/python_env_XXXXXX` when it starts, for the environments of
models that bring one, and removes it when it ends in order. Its place cannot be chosen.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

SCRATCH = Path("/tmp")  # noqa: S108 - Triton's own choice
PREFIX = "python_env_"
# From the start of Triton's process until its Python backend is loaded.
MADE_WITHIN_S = 120.0
_PROC = Path("/proc")
_START_FIELD = 19  # of /proc/PID/stat, counted after the name in parentheses; see proc(5)


def remove_stale_scratch(folder: Path = SCRATCH) -> list[str]:
    """Remove the empty ones that no living Triton can have made; their names."""
    found = [path for path in folder.glob(f"{PREFIX}*") if _is_ours(path)]
    if not found:
        return []
    starts = _starts_of_tritons()
    removed = list[str]()
    for path in found:
        with suppress(OSError):  # not empty, or gone meanwhile
            made = path.stat().st_mtime
            # The kernel tells the time of its start in whole seconds.
            if not any(-1.0 <= made - start <= MADE_WITHIN_S for start in starts):
                path.rmdir()
                removed.append(path.name)
    return removed


def _is_ours(path: Path) -> bool:
    with suppress(OSError):
        return path.is_dir() and path.stat().st_uid == os.getuid()
    return False


def _starts_of_tritons() -> list[float]:
    """When each living Triton on this machine was started, in Unix seconds."""
    booted = next(
        float(line.split()[1])
        for line in (_PROC / "stat").read_text().splitlines()
        if line.startswith("btime ")
    )
    starts = list[float]()
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            if (process / "comm").read_text().strip() == "tritonserver":
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                starts.append(booted + int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK"))
    return starts
