"""One more gateway on a running platform."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from busbar_runtime.platform import Platform
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.services import REGION

from harness.another_service import AnotherService, running

CLOCK_OFF = Path(__file__).with_name("clock_off")


@dataclass(kw_only=True)
class AnotherGateway(AnotherService):
    """The process, and where it listens."""

    http: str
    grpc: str


@contextlib.asynccontextmanager
async def another_gateway(
    platform: Platform,
    place: Path,
    *,
    gateway_id: str = "g2",
    clock_off_s: int = 0,
    settings: Mapping[str, str] | None = None,
    files_max: int | None = None,
) -> AsyncIterator[AnotherGateway]:
    """Run it until the end of the block, with its own clock if that is to be off.

    It can have `files_max` open and no more, where that is given.

    It then leaves: slots, limits and credit that it shares are the platform's own gateway's again.
    """

    def make(ports: PortPool) -> AnotherGateway:
        http, grpc, ops = ports.take(), ports.take(), ports.take()
        return AnotherGateway(
            "busbar_gateway",
            {
                **_settings(platform, clock_off_s),
                "BUSBAR_GATEWAY_ID": gateway_id,
                "BUSBAR_HTTP_PORT": str(http),
                "BUSBAR_GRPC_PORT": str(grpc),
                "BUSBAR_OPS_PORT": str(ops),
                "BUSBAR_STATE_DIR": str(place),
                **(settings or {}),
            },
            f"http://{LOOPBACK}:{ops}",
            files_max=files_max,
            http=f"http://{LOOPBACK}:{http}",
            grpc=f"{LOOPBACK}:{grpc}",
        )

    async with running(make) as made:
        yield made


def _settings(platform: Platform, clock_off_s: int) -> dict[str, str]:
    found = platform.endpoints
    clock = {"PYTHONPATH": str(CLOCK_OFF), "TEST_CLOCK_OFF_S": str(clock_off_s)}
    return {
        "BUSBAR_NATS_URL": found["nats"],
        "BUSBAR_NATS_USER": "gateway",
        "BUSBAR_NATS_PASSWORD": found["nats_credentials"]["gateway"],
        "BUSBAR_REGION": REGION,
        "BUSBAR_KEY_HMAC_SECRET": platform.secrets.key_hmac,
        "BUSBAR_LOG_LEVEL": "warning",
        **(clock if clock_off_s else {}),
    }
