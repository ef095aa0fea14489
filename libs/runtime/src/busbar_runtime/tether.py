"""Become another program that dies with its parent: `python -I -S tether.py PARENT_PID ARGV...`.

As leader of a process group, with `--group` before ARGV, it takes the whole group along.

A process of its own, because the kernel forgets the parent-death signal when credentials change:
it has to be asked for after `unshare --user` or `setpriv`, right before the real program.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
COMMAND_NOT_FOUND = 127
GROUP = "--group"


def main() -> None:
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    if argv[0] == GROUP:
        argv = argv[1:]
        _guard_group(os.pidfd_open(parent))
    # The interpreter ignores these two; the program must not inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as problem:
        sys.stderr.write(f"cannot start {argv[0]}: {problem.strerror}\n")
        sys.exit(COMMAND_NOT_FOUND)


def _guard_group(parent: int) -> None:
    """Leave a process in this group that kills all of it once the parent (a pidfd) is gone."""
    if os.fork():
        os.close(parent)
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    select.select([parent], [], [])
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
