"""Starts a set of processes and steps in order, keeps them running, stops them in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from busbar_runtime import logfile
from busbar_runtime.persistent import Persistent
from busbar_runtime.process import (
    Announce,
    ManagedProcess,
    StartFailedError,
    State,
    Surroundings,
    run_step,
)
from busbar_runtime.spec import Node, ProcessSpec

LOG_CHECK_INTERVAL_S = 10.0


def leave_strays(_known: set[int]) -> None:
    """What a process that is no subreaper does about strays: it does not have any."""


class Supervisor:
    """Owns the processes of one platform. Not reusable: start once, stop once."""

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        logs: Path,
        announce: Announce,
        changed: Callable[[], None] = lambda: None,
        sweep: Callable[[set[int]], object] = leave_strays,
    ) -> None:
        """`changed` is called after each change, and again while it raises OSError.

        `announce` must not raise, or a process that is announced is kept no longer.
        """
        self._nodes = nodes
        self._around = Surroundings(logs, announce, Persistent(changed), sweep)
        self._janitor: asyncio.Task[None] | None = None
        self.processes = {
            spec.name: ManagedProcess(spec, self._around)
            for spec in nodes
            if isinstance(spec, ProcessSpec)
        }

    async def start(self) -> None:
        """Start every node once what it comes after is ready; raises the first failure."""
        self._around.logs.mkdir(parents=True, exist_ok=True)
        self._janitor = asyncio.create_task(self._keep_logs_bounded())
        done = {node.name: asyncio.Event() for node in self._nodes}
        try:
            async with asyncio.TaskGroup() as group:
                for node in self._nodes:
                    group.create_task(self._start_node(node, done), name=f"start {node.name}")
        except ExceptionGroup as failures:
            expected = failures.subgroup((RuntimeError, OSError))
            if expected is None:
                raise
            raise StartFailedError(str(expected.exceptions[0])) from expected.exceptions[0]

    async def _start_node(self, node: Node, done: dict[str, asyncio.Event]) -> None:
        for earlier in node.after:
            await done[earlier].wait()
        if isinstance(node, ProcessSpec):
            await self.processes[node.name].start()
        else:
            await run_step(node, self._around)
        done[node.name].set()

    async def stop(self) -> None:
        """Stop one after the other, last in the list first."""
        for name, process in reversed(self.processes.items()):
            if process.state is not State.STOPPED:
                await process.stop()
                self._around.announce(f"{name} stopped")
        if self._janitor:
            self._janitor.cancel()
            with suppress(asyncio.CancelledError):
                await self._janitor

    def pids(self) -> dict[str, int]:
        """Process ids by name, of those that run."""
        return {name: process.pid for name, process in self.processes.items() if process.pid}

    async def _keep_logs_bounded(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_INTERVAL_S)
            for log in self._around.logs.glob("*.log"):
                logfile.bound(log)
