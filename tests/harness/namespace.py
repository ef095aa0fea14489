"""A network namespace behind a pair of virtual Ethernet devices, whose packets can vanish.

Needs root and `ip`. A way is cut by telling its sender a wrong Ethernet address for the other
end: packets leave and nobody takes them, no device goes down and no error comes back.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

_NOBODY = "02:00:00:00:00:01"
POSSIBLE = os.geteuid() == 0 and shutil.which("ip") is not None
NEEDED = "network namespaces need root and ip"


@dataclass(frozen=True)
class Namespace:
    """`here` and `there` are the addresses of the wire's two ends, ours and the namespace's."""

    name: str
    here: str
    there: str

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command, run in the namespace."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]

    async def lose_what_it_sends(self) -> None:
        """Packets from the namespace vanish."""
        wrong = ["neigh", "replace", self.here, "lladdr", _NOBODY, "dev", f"{self.name}-b"]
        await _ip("-n", self.name, *wrong, "nud", "permanent")

    async def lose_what_it_is_sent(self) -> None:
        """Packets to the namespace vanish."""
        wrong = ["neigh", "replace", self.there, "lladdr", _NOBODY, "dev", f"{self.name}-a"]
        await _ip(*wrong, "nud", "permanent")

    async def cut(self) -> None:
        """Packets vanish both ways."""
        await self.lose_what_it_sends()
        await self.lose_what_it_is_sent()

    async def restore(self) -> None:
        """Packets arrive, both ways."""
        await _ip("-n", self.name, "neigh", "flush", "dev", f"{self.name}-b", "nud", "permanent")
        await _ip("neigh", "flush", "dev", f"{self.name}-a", "nud", "permanent")


@asynccontextmanager
async def namespace() -> AsyncIterator[Namespace]:
    """One of its own, gone at the end; two processes do not get the same."""
    number = os.getpid() % 16384  # of the /30 networks in 10.91.0.0/16
    high, low = divmod(4 * number, 256)
    made = Namespace(f"busbar{os.getpid()}", f"10.91.{high}.{low + 1}", f"10.91.{high}.{low + 2}")
    near, far = f"{made.name}-a", f"{made.name}-b"
    await _ip("netns", "add", made.name)
    try:
        await _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", made.name)
        await _ip("addr", "add", f"{made.here}/30", "dev", near)
        await _ip("link", "set", near, "up")
        await _ip("-n", made.name, "addr", "add", f"{made.there}/30", "dev", far)
        await _ip("-n", made.name, "link", "set", far, "up")
        await _ip("-n", made.name, "link", "set", "lo", "up")
        yield made
    finally:
        await _ip("netns", "del", made.name)


async def _ip(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec("ip", *arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {said.decode().strip()}")
