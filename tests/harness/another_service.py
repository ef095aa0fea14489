"""One more process of a service on a running platform, which a test may treat as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from busbar_runtime.child import tethered
from busbar_runtime.ports import PortPool

from harness.polling import eventually

READY_S = 90  # as long as the launcher gives a service
STOPPED_S = 60


@dataclass
class AnotherService:
    """The process, and where its ops listener is."""

    module: str
    environment: Mapping[str, str]
    ops: str
    files_max: int | None = None
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        await self.spawn()
        await eventually(self.ready, within_s=READY_S, what=f"the other {self.module} is ready")

    async def spawn(self) -> None:
        """Start it, and wait for nothing."""
        self.process = await asyncio.create_subprocess_exec(
            *tethered([*self._limit(), sys.executable, "-m", self.module]),
            env={**os.environ, **self.environment},
        )

    def _limit(self) -> list[str]:
        if self.files_max is None:
            return []
        return ["/bin/sh", "-c", 'ulimit -n "$0" && exec "$@"', str(self.files_max)]

    async def end(self, number: int = signal.SIGKILL) -> int:
        """Signal it and wait until it is gone; returns its exit status."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), STOPPED_S)

    async def restart(self) -> int:
        """Stop it as an upgrade does and start it again; returns with what it ended."""
        status = await self.end(signal.SIGTERM)
        await self.start()
        return status

    async def metric(self, name: str) -> float:
        """A metric that has no labels."""
        async with httpx.AsyncClient(timeout=30, trust_env=False, verify=False) as client:
            text = (await client.get(f"{self.ops}/metrics")).text
        [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.rsplit(" ", 1)[1])

    async def ready(self) -> bool:
        """Whether it says so; raises AssertionError when it has ended by itself."""
        assert self.process is not None
        assert self.process.returncode is None, f"the other {self.module} ended by itself"
        try:
            async with httpx.AsyncClient(timeout=30, trust_env=False, verify=False) as client:
                return (await client.get(f"{self.ops}/readyz")).is_success
        except httpx.TransportError:
            return False


S = TypeVar("S", bound=AnotherService)


@contextlib.asynccontextmanager
async def running(make: Callable[[PortPool], S], *, ready: bool = True) -> AsyncIterator[S]:
    """Make it with ports that nobody else has, and run it until the end of the block.

    From when it is ready, if it is to be.
    """
    pool = PortPool()
    made = make(pool)
    try:
        await (made.start() if ready else made.spawn())
        yield made
    finally:
        try:
            await made.end(signal.SIGTERM)
        finally:
            await made.end()  # if it could not leave
            pool.close()
