"""One started operating-system process, awaited without threads or signal handlers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO

from busbar_runtime.tether import GROUP

TETHER = str(Path(__file__).with_name("tether.py"))


def tethered(argv: Sequence[str], *, group: bool = False) -> list[str]:
    """The command, run so that it does not outlive this process.

    With `group`, and as leader of one, nothing that it starts outlives this process either.
    """
    options = [GROUP] if group else []
    return [sys.executable, "-I", "-S", TETHER, str(os.getpid()), *options, *argv]


class Child:
    """Runs in its own session, tied to this process's life; must be made on the event loop.

    `alive` holds the process ids of all children not reaped yet; see descendants.kill_strays.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        alive: set[int],
        cwd: Path,
        env: Mapping[str, str],
        output: int | IO[bytes],
        stdin: str = "",
        wrapper: Sequence[str] = (),
    ) -> None:
        self._process = subprocess.Popen(
            [*wrapper, *tethered(argv)],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        if self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.write(stdin.encode())
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._alive = alive
        self._alive.add(self._process.pid)
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        self._alive.discard(self.pid)
        self._exited.set_result(status)

    async def wait(self) -> int:
        """The exit status; negative is the signal that ended it."""
        return await asyncio.shield(self._exited)

    def signal(self, number: int) -> None:
        if not self._exited.done():
            os.kill(self.pid, number)

    async def stop(self, number: int, grace: timedelta) -> bool:
        """Ask, wait, then kill it with its whole session's process group; whether it obeyed."""
        self.signal(number)
        obeyed = True
        try:
            await asyncio.wait_for(self.wait(), grace.total_seconds())
        except TimeoutError:
            obeyed = False
        self.kill_group()
        await self.wait()
        return obeyed

    def kill_group(self) -> None:
        """Kill what is left of the process and of those it started in its group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
