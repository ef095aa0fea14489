"""One more node on a running platform: an agent with a Triton of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from busbar_runtime.fleet import Fleet
from busbar_runtime.home import Secrets
from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.services import REGION
from busbar_runtime.triton import ensure_triton

from harness.another_service import AnotherService, running


@contextlib.asynccontextmanager
async def another_node(
    platform: Platform,
    place: Path,
    *,
    node: str = "n2",
    settings: Mapping[str, str] | None = None,
    ready: bool = True,
) -> AsyncIterator[AnotherService]:
    """Run it until the end of the block. What may run there is the scheduler's to say."""
    triton = await asyncio.to_thread(ensure_triton, platform.home.cache)

    def make(ports: PortPool) -> AnotherService:
        ops = ports.take()
        return AnotherService(
            "busbar_node_agent",
            {
                **_settings(platform, triton.command),
                "BUSBAR_NODE": node,
                "BUSBAR_OPS_PORT": str(ops),
                "BUSBAR_STATE_DIR": str(place),
                **(settings or {}),
            },
            f"http://{LOOPBACK}:{ops}",
        )

    async with running(make, ready=ready) as made:
        yield made


def _settings(platform: Platform, triton: list[str]) -> dict[str, str]:
    found = platform.endpoints
    return {
        "BUSBAR_NATS_URL": found["nats"],
        "BUSBAR_NATS_USER": "agent",
        "BUSBAR_NATS_PASSWORD": found["nats_credentials"]["agent"],
        "BUSBAR_REGION": REGION,
        "BUSBAR_SITE": Fleet.of(0).nodes[0].site,
        "BUSBAR_TRITON_COMMAND": json.dumps(triton),
        "BUSBAR_BUNDLE_APPROVERS": json.dumps([Secrets.of(platform.home).signing_key_public]),
        "BUSBAR_LOG_LEVEL": "warning",
    }
