"""A site of a running platform, moved behind a wire of its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from busbar_runtime.child import tethered
from busbar_runtime.platform import Platform

from harness.namespace import Namespace

STOPPED_S = 60


@dataclass
class FarSite:
    """A site's NATS and node agent, in a network namespace."""

    wire: Namespace
    commands: dict[str, tuple[list[str], dict[str, str]]]
    log: Path
    processes: dict[str, asyncio.subprocess.Process] = field(
        default_factory=dict[str, asyncio.subprocess.Process]
    )

    async def start(self) -> None:
        """Start both; they get ready by themselves."""
        with self.log.open("ab") as log:
            for name, (argv, environment) in self.commands.items():
                self.processes[name] = await asyncio.create_subprocess_exec(
                    *tethered(self.wire.inside(argv)), env=environment, stdout=log, stderr=log
                )

    async def end(self, number: int = signal.SIGKILL) -> None:
        """Signal all, the node agent first, and wait until they are gone."""
        for process in reversed(list(self.processes.values())):
            if process.returncode is None:
                process.send_signal(number)
            await asyncio.wait_for(process.wait(), STOPPED_S)


@asynccontextmanager
async def far_site(
    platform: Platform, site: str, wire: Namespace, *, hub_port: int, link_port: int
) -> AsyncIterator[FarSite]:
    """Stop the site's processes here and run the same over there, until the end of the block.

    Its NATS takes `link_port` on our end of the wire for its region's `hub_port`.
    """
    commands = dict[str, tuple[list[str], dict[str, str]]]()
    for name in (f"nats-{site}", f"node-agent-{site}"):
        running = psutil.Process(platform.pids[name])
        environment = {
            key: value.replace(f"127.0.0.1:{hub_port}", f"{wire.here}:{link_port}")
            for key, value in running.environ().items()
        }
        commands[name] = (running.cmdline(), environment)
    for name in reversed(commands):
        await platform.stop(name)
    made = FarSite(wire, commands, platform.home.logs / f"far-{site}.log")
    try:
        await made.start()
        yield made
    finally:
        await made.end(signal.SIGTERM)
        for name in commands:
            await platform.start(name)
