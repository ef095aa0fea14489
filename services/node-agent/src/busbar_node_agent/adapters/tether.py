"""Become another program that dies with its parent: `python -I -S tether.py PARENT_PID ARGV...`.

So that `kill -9` of the agent leaves no Triton behind that holds the GPU, nor the processes of its
models: those ask whether Triton's process id still exists, which it does for as long as nobody
waits for the dead one, and they ignore SIGTERM. Must be started as the leader of a process group.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
COMMAND_NOT_FOUND = 127


def main() -> None:
    """Ask the kernel for the signal, then turn into the program."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    _guard_group(os.pidfd_open(parent))
    # The interpreter ignores this one; the program must not inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606  # the operator's own command
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[0]}: {error.strerror}\n")
        sys.exit(COMMAND_NOT_FOUND)


def _guard_group(parent: int) -> None:
    """Leave a process in this group that kills all of it once the parent is gone.

    `parent` is its pidfd. Whoever kills the group ends the guard too.
    """
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
