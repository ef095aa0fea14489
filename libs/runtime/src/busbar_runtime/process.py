"""Keeps one process running: start, wait until ready, restart with backoff, stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from busbar_runtime import logfile, probes
from busbar_runtime.child import Child
from busbar_runtime.spec import Environment, ProcessSpec, StepSpec

EARLY_EXITS_ALLOWED = 3  # before it was ever ready; then the start has failed
LOG_LINES_SHOWN = 15

Announce = Callable[[str], None]


class State(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"  # for its restart


class StartFailedError(RuntimeError):
    """A part could not be started; the message names it and ends with its last log lines."""


@dataclass(frozen=True)
class Surroundings:
    """What all processes of one supervisor share."""

    logs: Path
    announce: Announce
    changed: Callable[[], None]
    sweep: Callable[[set[int]], object]  # ends strays: children that are not among these
    alive: set[int] = field(default_factory=set[int])


class ManagedProcess:
    """The one owner of a ProcessSpec's process."""

    def __init__(self, spec: ProcessSpec, around: Surroundings) -> None:
        self.spec = spec
        self.state = State.STOPPED
        self.restarts = 0
        self._around = around
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._was_ready = False

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def log(self) -> Path:
        return self._around.logs / f"{self.spec.name}.log"

    async def start(self) -> None:
        """Start and keep running; returns once ready, raises StartFailedError if it never is.

        Where that has failed for good before, this is a new attempt.
        """
        if self._keeper is None or self._keeper.done():
            self._was_ready = False
            self._keeper = asyncio.create_task(self._keep_running(), name=f"keep {self.spec.name}")
        await self.wait_ready()

    async def wait_ready(self) -> None:
        keeper = self._keeper
        if keeper is None:
            raise StartFailedError(f"{self.spec.name} is not running")
        ready = asyncio.create_task(self._until_ready())
        timeout_s = self.spec.ready_timeout.total_seconds()
        try:
            await asyncio.wait(
                {keeper, ready}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
        if self.state is State.READY:
            return
        if keeper.done() and not keeper.cancelled():
            keeper.result()
        raise StartFailedError(
            self._with_log(f"{self.spec.name} was not ready after {timeout_s:g} s")
        )

    async def stop(self) -> None:
        """Stop it and do not start it again."""
        keeper, self._keeper = self._keeper, None
        if keeper:
            keeper.cancel()
            with suppress(asyncio.CancelledError, RuntimeError, OSError):
                await keeper
        if self._child:
            grace = self.spec.stop_grace
            if not await self._child.stop(self.spec.stop_signal, grace):
                self._around.announce(
                    f"{self.spec.name} did not stop within {grace.total_seconds():g} s: killed"
                )
            self._around.sweep(self._around.alive)
        self._child = None
        self._become(State.STOPPED)

    async def send(self, number: int) -> None:
        """Send a signal; after a SIGKILL it is no longer ready when this returns."""
        child = self._child
        if child is None:
            return
        child.signal(number)
        if number == signal.SIGKILL:
            await child.wait()
            if self._child in {child, None}:
                self._become(State.WAITING)

    async def _until_ready(self) -> None:
        async def is_ready() -> bool:
            return self.state is State.READY

        await probes.until(is_ready)

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            started_s = time.monotonic()
            status = await self._run_or_explain()
            lived_s = time.monotonic() - started_s
            failures = (
                1 if lived_s > self.spec.restart.stable_after.total_seconds() else failures + 1
            )
            if not self._was_ready and failures >= EARLY_EXITS_ALLOWED:
                self._become(State.STOPPED)
                raise StartFailedError(
                    self._with_log(f"{self.spec.name} exited ({status}) before it was ready")
                )
            delay = self.spec.restart.delay(failures)
            self._around.announce(
                f"{self.spec.name} exited ({status}), restarting in {delay.total_seconds():g} s"
            )
            self._become(State.WAITING)
            await asyncio.sleep(delay.total_seconds())
            self.restarts += 1

    async def _run_or_explain(self) -> int | str:
        """The exit status; once it was ready, a failure to start it is one more reason to retry."""
        try:
            return await self._run_once()
        except (RuntimeError, OSError) as problem:
            if not self._was_ready:
                self._become(State.STOPPED)
                raise
            return f"not started: {problem}"

    async def _run_once(self) -> int:
        if self.spec.before_start:
            self.spec.before_start()
        self._child = child = launch(self.spec, self.log, self._around.alive)
        self._become(State.STARTING)
        readiness = asyncio.create_task(self._mark_ready(), name=f"probe {self.spec.name}")
        try:
            status = await child.wait()
        finally:
            readiness.cancel()
        self._child = None
        child.kill_group()
        self._around.sweep(self._around.alive)
        return status

    async def _mark_ready(self) -> None:
        started_s = time.monotonic()
        await probes.until(self.spec.ready)
        self._become(State.READY)
        took_s = time.monotonic() - started_s
        again = " again" if self._was_ready else ""
        self._was_ready = True
        self._around.announce(f"{self.spec.name} is ready{again} ({took_s:.1f} s)")

    def _become(self, state: State) -> None:
        self.state = state
        self._around.changed()

    def _with_log(self, problem: str) -> str:
        lines = logfile.tail(self.log, LOG_LINES_SHOWN)
        return "\n    ".join([f"{problem}; the end of {self.log}:", *lines])


def launch(spec: ProcessSpec | StepSpec, log: Path, alive: set[int]) -> Child:
    """Start the process with its output going to the log."""
    descriptor = logfile.open_append(log)
    try:
        return Child(
            spec.argv,
            alive=alive,
            cwd=spec.cwd,
            env={**inherited_environment(), **resolve(spec.env)},
            output=descriptor,
            stdin=spec.stdin if isinstance(spec, StepSpec) else "",
            wrapper=spec.wrapper,
        )
    finally:
        os.close(descriptor)


async def run_step(spec: StepSpec, around: Surroundings) -> None:
    """Run to the end; raises StartFailedError unless it exits with 0 in time."""
    log = around.logs / ("console.log" if spec.shown else f"{spec.name}.log")
    if spec.before_start:
        spec.before_start()
    child = launch(spec, log, around.alive)
    try:
        status = await asyncio.wait_for(child.wait(), spec.timeout.total_seconds())
    except TimeoutError:
        raise StartFailedError(
            f"{spec.name} took longer than {spec.timeout.total_seconds():g} s"
        ) from None
    finally:
        child.kill_group()
    if status != 0:
        lines = [] if spec.shown else logfile.tail(log, LOG_LINES_SHOWN)
        raise StartFailedError(
            "\n    ".join([f"{spec.name} failed ({status}); the end of {log}:", *lines])
        )


def inherited_environment() -> dict[str, str]:
    """This process's environment without Busbar's own variables: each spec says its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BUSBAR_")}


def resolve(env: Environment) -> Mapping[str, str]:
    return env() if callable(env) else env
