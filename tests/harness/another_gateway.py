"""One more gateway on a running platform, which a test may treat as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK, PortPool

from harness.polling import eventually

READY_S = 60
CLOCK_OFF = Path(__file__).with_name("clock_off")


@dataclass
class AnotherGateway:
    """The process, and where it listens."""

    environment: Mapping[str, str]
    http: str
    grpc: str
    ops: str
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "busbar_gateway", env={**os.environ, **self.environment}
        )
        await eventually(self._ready, within_s=READY_S, what="the other gateway is ready")

    async def end(self, number: int = signal.SIGKILL) -> None:
        """Signal it and wait until it is gone."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)
            await self.process.wait()

    async def metric(self, name: str) -> float:
        """A metric that has no labels."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"{self.ops}/metrics")).text
        [line] = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.rsplit(" ", 1)[1])

    async def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, "the other gateway ended by itself"
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{self.ops}/readyz")).is_success
        except httpx.TransportError:
            return False


@contextlib.asynccontextmanager
async def another_gateway(
    platform: Platform, place: Path, *, gateway_id: str = "g2", clock_off_s: int = 0
) -> AsyncIterator[AnotherGateway]:
    """Run it until the end of the block, with its own clock if that is to be off."""
    found, secrets = platform.endpoints, platform.secrets
    pool = PortPool()
    http, grpc, ops = pool.take(), pool.take(), pool.take()
    environment = {
        "BUSBAR_NATS_URL": found["nats"],
        "BUSBAR_NATS_USER": "gateway",
        "BUSBAR_NATS_PASSWORD": found["nats_credentials"]["gateway"],
        "BUSBAR_REGION": "r1",
        "BUSBAR_GATEWAY_ID": gateway_id,
        "BUSBAR_HTTP_PORT": str(http),
        "BUSBAR_GRPC_PORT": str(grpc),
        "BUSBAR_OPS_PORT": str(ops),
        "BUSBAR_KEY_HMAC_SECRET": secrets.key_hmac,
        "BUSBAR_STATE_DIR": str(place),
        "BUSBAR_LOG_LEVEL": "warning",
    }
    if clock_off_s:
        clock = {"PYTHONPATH": str(CLOCK_OFF), "TEST_CLOCK_OFF_S": str(clock_off_s)}
        environment |= clock
    made = AnotherGateway(
        environment, f"http://{LOOPBACK}:{http}", f"{LOOPBACK}:{grpc}", f"http://{LOOPBACK}:{ops}"
    )
    await made.start()
    try:
        yield made
    finally:
        await made.end()
        pool.close()
