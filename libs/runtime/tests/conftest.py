"""Small processes to supervise, and waiting without sleeping."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from busbar_runtime import probes
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.spec import ProcessSpec, RestartPolicy

DEADLINE_S = 20.0
QUICK = RestartPolicy(
    first_delay=timedelta(milliseconds=50), longest_delay=timedelta(milliseconds=200)
)
LISTEN = """
    import signal, socket, sys
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    print("listening", flush=True)
    while True:
        listener.accept()[0].close()
"""


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; TimeoutError when it does not by the deadline."""

    async def probe() -> bool:
        return condition()

    async with asyncio.timeout(DEADLINE_S):
        await probes.until(probe)


Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture(name="eventually")
def _eventually() -> Eventually:
    return eventually


@dataclass
class Processes:
    """Makes specs of small Python programs that listen on a port of their own."""

    directory: Path
    pool: PortPool
    said: list[str] = field(default_factory=list[str])

    def listening(self, name: str, program: str = LISTEN, **changes: Any) -> ProcessSpec:
        port = self.pool.take()
        spec = ProcessSpec(
            name=name,
            argv=[sys.executable, "-c", textwrap.dedent(program), str(port)],
            cwd=self.directory,
            ready=probes.tcp(LOOPBACK, port),
            restart=QUICK,
        )
        return replace(spec, **changes)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    pool = PortPool()
    yield Processes(tmp_path, pool)
    pool.close()


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture(name="is_alive")
def _is_alive() -> Callable[[int], bool]:
    return is_alive
