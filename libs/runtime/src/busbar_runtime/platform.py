"""A platform for tests: start some or all of it, find it, hurt it.

async with Platform(tmp_path) as platform:
    await platform.kill("gateway", signal.SIGKILL)
    await platform.wait_ready("gateway")
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from busbar_runtime import endpoints, launcher
from busbar_runtime.control import ControlClient
from busbar_runtime.daemon import LaunchSettings
from busbar_runtime.home import Home, Secrets


def _say_nothing(_text: str) -> None:
    """What a test wants to see of the console unless it fails."""


class Platform:
    """Runs in processes of its own and stops when left, or when this process dies."""

    def __init__(
        self,
        home: Path,
        *,
        cache: Path | None = None,
        parts: Sequence[str] = (),
        environments: Mapping[str, Mapping[str, str]] | None = None,
        sites: int = 0,
        hub_servers: int = 1,
        links: Mapping[str, int] | None = None,
        show: Callable[[str], None] = _say_nothing,
    ) -> None:
        """`parts` come with all that they need: "nats", "bus", "postgres-database", "gateway", …;
        without any it is the whole platform.

        `environments` adds variables to single services. The cache is shared unless given.
        For `sites`, `hub_servers` and `links` see LaunchSettings.
        """
        self.home = Home.of(home, cache)
        self._settings = LaunchSettings(
            parts=parts,
            environments=environments or {},
            follow_stdin=True,
            sites=sites,
            hub_servers=hub_servers,
            links=links or {},
        )
        self._show = show
        self._daemon: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it and wait until all of it is ready; LaunchFailedError says what was not."""
        self._daemon = launcher.spawn(self.home, self._settings)
        try:
            launcher.wait_until_ready(self.home, self._daemon, self._show)
        except BaseException:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """Stop it, last part first, and wait until nothing of it runs."""
        if self._daemon:
            launcher.end_daemon(self._daemon)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.launch)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.to_thread(self.shutdown)

    @property
    def endpoints(self) -> dict[str, Any]:
        """endpoints.json as it is now."""
        return endpoints.read(self.home)

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each running process, by name."""
        return self.endpoints["pids"]

    @property
    def daemon_pid(self) -> int:
        """The outermost process: the warden. `endpoints["launcher"]` is its supervisor."""
        if self._daemon is None:
            raise RuntimeError("not launched")
        return self._daemon.pid

    @property
    def secrets(self) -> Secrets:
        """What this home's parts were given."""
        return Secrets.of(self.home)

    def log(self, name: str) -> str:
        """What the process, or "console", has written."""
        return (self.home.logs / f"{name}.log").read_text(errors="replace")

    async def status(self) -> dict[str, Any]:
        """{"phase", "warden", "processes": {name: {"state", "pid", "restarts"}}}."""
        return await self._ask("status")

    async def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process; its supervisor then does what it does in production."""
        await self._ask("kill", name=name, signal=int(number))

    async def stop(self, name: str) -> None:
        """Stop the process in good order and leave it stopped."""
        await self._ask("stop", name=name)

    async def start(self, name: str) -> None:
        """Start the stopped process and wait until it is ready."""
        await self._ask("start", name=name)

    async def restart(self, name: str) -> None:
        await self._ask("restart", name=name)

    async def wait_ready(self, name: str) -> None:
        """Return once the process is ready, which it may be already."""
        await self._ask("wait-ready", name=name)

    async def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            with ControlClient(self.home.run, timeout=timedelta(minutes=5)) as control:
                return control.ask(command, **arguments)

        return await asyncio.to_thread(ask)
