"""Ending with one's parent, and finding and ending what a process left behind.

A subreaper inherits its orphaned descendants, so "my children that I do not know" are exactly the
strays of something that died; see PR_SET_CHILD_SUBREAPER in prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PARENT_FIELD = 1  # of /proc/PID/stat, counted after the parenthesised name and the state


def become_subreaper() -> None:
    """From now on orphaned descendants become children of this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def signal_me_when_my_parent_dies(number: int) -> None:
    """Until this process changes its credentials; see PR_SET_PDEATHSIG in prctl(2)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def children_of(parent: int) -> list[int]:
    """Process ids of the direct children, zombies included."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[PARENT_FIELD]) == parent:
                found.append(int(entry.name))
    return found


def kill_strays(known: Container[int]) -> int:
    """Kill and reap all children of this process but the known ones; how many there were."""
    killed = 0
    # Each generation that dies hands its own children up, hence the loop.
    while strays := [pid for pid in children_of(os.getpid()) if pid not in known]:
        for pid in strays:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        killed += len(strays)
    return killed
