"""What keeps a site's NATS alive: its manifest's liveness probe, asked as a kubelet asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import yaml
from busbar_runtime.home import REPO

_MANIFEST = REPO / "deploy" / "site" / "kubernetes" / "nats.yaml"


def liveness_probe() -> dict[str, Any]:
    """Of the container in the site's manifest."""
    [container] = [
        one
        for part in yaml.safe_load_all(_MANIFEST.read_text())
        if part["kind"] == "StatefulSet"
        for one in part["spec"]["template"]["spec"]["containers"]
    ]
    return container["livenessProbe"]


@asynccontextmanager
async def kept_alive(monitor: str, restart: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Probe it until the end of the block; `restart` is called whenever it has failed enough."""
    probe = liveness_probe()

    async def keep() -> None:
        failures = 0
        async with httpx.AsyncClient(
            base_url=monitor, timeout=5, trust_env=False, verify=False
        ) as client:
            while True:
                await asyncio.sleep(probe["periodSeconds"])
                try:
                    alive = (await client.get(probe["httpGet"]["path"])).is_success
                except httpx.HTTPError:
                    alive = False
                failures = 0 if alive else failures + 1
                if failures >= probe["failureThreshold"]:
                    failures = 0
                    await restart()

    keeping = asyncio.create_task(keep(), name="liveness")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
