"""What keeps a site's NATS alive: its manifest's liveness probe, asked as a kubelet asks it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from busbar_runtime.home import REPO

POSSIBLE = shutil.which("wget") is not None
NEEDED = "the probe of a site's NATS needs wget, as its image has it"
_MANIFEST = REPO / "deploy" / "site" / "kubernetes" / "nats.yaml"
_CONFIGURATION = REPO / "deploy" / "nats"


def liveness_probe() -> dict[str, Any]:
    """Of the container in the site's manifest."""
    [container] = [
        one
        for part in yaml.safe_load_all(_MANIFEST.read_text())
        if part["kind"] == "StatefulSet"
        for one in part["spec"]["template"]["spec"]["containers"]
    ]
    return container["livenessProbe"]


async def alive(monitor: str, store: Path) -> bool:
    """What the probe says of the server whose monitor and store are there."""
    probe = liveness_probe()
    shell, script, _, _ = probe["exec"]["command"]
    process = await asyncio.create_subprocess_exec(
        shell,
        str(_CONFIGURATION / Path(script).name),
        monitor,
        str(store),
        env={"PATH": os.environ["PATH"], "no_proxy": "*"},
    )
    try:
        return await asyncio.wait_for(process.wait(), probe["timeoutSeconds"]) == 0
    except TimeoutError:
        process.kill()
        await process.wait()
        return False


@asynccontextmanager
async def kept_alive(
    monitor: str, store: Path, restart: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Probe it until the end of the block; `restart` is called whenever it has failed enough."""
    probe = liveness_probe()

    async def keep() -> None:
        failures = 0
        while True:
            await asyncio.sleep(probe["periodSeconds"])
            failures = 0 if await alive(monitor, store) else failures + 1
            if failures >= probe["failureThreshold"]:
                failures = 0
                await restart()

    keeping = asyncio.create_task(keep(), name="liveness")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
