"""A site of a running platform, moved behind a wire of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from busbar_runtime.child import tethered
from busbar_runtime.platform import Platform

from harness.namespace import Namespace
from harness.polling import eventually

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
        for name in self.commands:
            await self._start(name)

    async def _start(self, name: str) -> None:
        argv, environment = self.commands[name]
        with self.log.open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *tethered(self.wire.inside(argv)), env=environment, stdout=log, stderr=log
            )

    async def restart_bus(self) -> None:
        """Stop the site's NATS as an orchestrator does, and start it again."""
        name = next(iter(self.commands))
        self.processes[name].send_signal(signal.SIGTERM)
        await asyncio.wait_for(self.processes[name].wait(), STOPPED_S)
        await self._start(name)

    @asynccontextmanager
    async def on(self, disk: Path, settings: dict[str, str]) -> AsyncIterator[str]:
        """Keep all of its data on another disk until the end of the block, with more settings.

        Yields where its NATS tells of its health.
        """
        before = dict(self.commands)
        (bus, (bus_argv, bus_said)), (agent, (agent_argv, agent_said)) = before.items()
        port = bus_said["BUSBAR_NATS_MONITOR"].strip('"').rpartition(":")[2]
        monitor = f"{self.wire.there}:{port}"
        moved = {
            "BUSBAR_NATS_STORE_DIR": json.dumps(str(disk / "nats")),
            "BUSBAR_NATS_MONITOR": json.dumps(monitor),
        }
        self.commands[bus] = (bus_argv, {**bus_said, **moved})
        state = {"BUSBAR_STATE_DIR": str(disk / "agent"), **settings}
        self.commands[agent] = (agent_argv, {**agent_said, **state})
        store = Path(json.loads(bus_said["BUSBAR_NATS_STORE_DIR"]))
        await self.end(signal.SIGTERM)
        shutil.copytree(store, disk / "nats")
        await self.start()
        try:
            yield f"http://{monitor}"
        finally:
            await self.end(signal.SIGTERM)
            shutil.rmtree(store)
            shutil.copytree(disk / "nats", store)
            self.commands.update(before)
            await self.start()

    async def end(self, number: int = signal.SIGKILL) -> None:
        """Signal all, the node agent first, and wait until they are gone."""
        for process in reversed(list(self.processes.values())):
            if process.returncode is None:
                process.send_signal(number)
            await asyncio.wait_for(process.wait(), STOPPED_S)

    async def says(self, text: str, *, since: int, within_s: float) -> float:
        """Seconds until this stands in the log, behind so many bytes of it."""
        began = time.monotonic()

        async def look() -> bool:
            return text.encode() in self.log.read_bytes()[since:]

        await eventually(look, within_s=within_s, what=text)
        return time.monotonic() - began

    async def lose_power(self) -> None:
        """Everything that runs at the site is killed at once, Triton and its models too."""
        roots = [psutil.Process(process.pid) for process in self.processes.values()]
        for one in [*roots, *(below for root in roots for below in root.children(recursive=True))]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        await self.end()


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
