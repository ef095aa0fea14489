"""One more gateway beside those of a running platform."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.services import REGION

from harness.polling import eventually


@dataclass(frozen=True)
class SecondGateway:
    """Where it listens."""

    http: str
    grpc: str
    ops: str


@contextlib.asynccontextmanager
async def second_gateway(platform: Platform, state_dir: Path) -> AsyncIterator[SecondGateway]:
    """Run it while the context is open."""
    ports = PortPool()
    at = SecondGateway(
        f"http://{LOOPBACK}:{ports.take()}",
        f"{LOOPBACK}:{ports.take()}",
        f"http://{LOOPBACK}:{ports.take()}",
    )
    endpoints = platform.endpoints
    environment = {
        **os.environ,
        "BUSBAR_NATS_URL": endpoints["nats"],
        "BUSBAR_NATS_USER": "gateway",
        "BUSBAR_NATS_PASSWORD": endpoints["nats_credentials"]["gateway"],
        "BUSBAR_REGION": REGION,
        "BUSBAR_GATEWAY_ID": f"g-{secrets.token_hex(4)}",
        "BUSBAR_HTTP_HOST": LOOPBACK,
        "BUSBAR_HTTP_PORT": at.http.rpartition(":")[2],
        "BUSBAR_GRPC_PORT": at.grpc.rpartition(":")[2],
        "BUSBAR_OPS_PORT": at.ops.rpartition(":")[2],
        "BUSBAR_KEY_HMAC_SECRET": platform.secrets.key_hmac,
        "BUSBAR_STATE_DIR": str(state_dir),
        "BUSBAR_LOG_LEVEL": "warning",
    }
    state_dir.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "busbar_gateway", env=environment
    )
    try:
        async with httpx.AsyncClient(base_url=at.ops, trust_env=False) as client:

            async def ready() -> bool:
                assert process.returncode is None, "the second gateway ended by itself"
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/readyz")).is_success
                return False

            await eventually(ready, within_s=60, what="the second gateway is ready")
        yield at
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
