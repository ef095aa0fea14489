"""The launcher's parent: outlives a killed launcher just long enough to end what it started.

A child dies with its launcher by itself (tether.py), but what the child started does not: those
orphans fall to the nearest subreaper, which is this process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

from busbar_runtime.descendants import (
    become_subreaper,
    kill_strays,
    signal_me_when_my_parent_dies,
)

SIGNAL_EXIT = 128  # a shell's way of saying "ended by a signal"


def run_guarded(work: Callable[[], int], cleaned: Callable[[], None]) -> int:
    """Run `work` in a child process; once it is over, however, leave no descendant behind.

    `cleaned` is called then. Returns the exit status of `work`. SIGTERM and SIGINT to this
    process reach the child; should this process be killed, the child gets SIGTERM.
    """
    become_subreaper()
    worker = os.fork()
    if worker == 0:
        signal_me_when_my_parent_dies(signal.SIGTERM)
        become_subreaper()
        os._exit(work())

    def forward(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(worker, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    _, status = os.waitpid(worker, 0)
    kill_strays(known=())
    cleaned()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else SIGNAL_EXIT - code
