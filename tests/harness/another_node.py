"""One more node on a running platform: an agent with a Triton of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from busbar_runtime.fleet import Fleet
from busbar_runtime.home import Secrets
from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.services import REGION
from busbar_runtime.triton import ensure_triton

from harness.another_service import AnotherService


@contextlib.asynccontextmanager
async def another_node(
    platform: Platform,
    place: Path,
    *,
    node: str = "n2",
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[AnotherService]:
    """Run it until the end of the block. What may run there is the scheduler's to say."""
    found = platform.endpoints
    pool = PortPool()
    ops = pool.take()
    triton = await asyncio.to_thread(ensure_triton, platform.home.cache)
    made = AnotherService(
        "busbar_node_agent",
        {
            "BUSBAR_NATS_URL": found["nats"],
            "BUSBAR_NATS_USER": "agent",
            "BUSBAR_NATS_PASSWORD": found["nats_credentials"]["agent"],
            "BUSBAR_REGION": REGION,
            "BUSBAR_SITE": Fleet.of(0).nodes[0].site,
            "BUSBAR_NODE": node,
            "BUSBAR_OPS_PORT": str(ops),
            "BUSBAR_STATE_DIR": str(place),
            "BUSBAR_TRITON_COMMAND": json.dumps(triton.command),
            "BUSBAR_BUNDLE_APPROVERS": json.dumps([Secrets.of(platform.home).signing_key_public]),
            "BUSBAR_LOG_LEVEL": "warning",
            **(settings or {}),
        },
        f"http://{LOOPBACK}:{ops}",
    )
    try:
        await made.start()
        yield made
    finally:
        await made.end(signal.SIGTERM)
        pool.close()
