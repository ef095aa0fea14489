"""The five services on a developer's machine: who they are on the bus and where they listen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from busbar_runtime import probes
from busbar_runtime.home import REPO, Home, Secrets
from busbar_runtime.nats import NatsAddress
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.postgres import PostgresAddress
from busbar_runtime.spec import Environment, ProcessSpec
from busbar_runtime.triton import ensure_triton

REGION, SITE, NODE = "r1", "s1", "n1"
SERVICES = ("telemetry", "billing", "scheduler", "node-agent", "gateway")
NATS_USER = {"node-agent": "agent"}  # the others are named as the service
# What a developer may set for all services from outside.
PASSED_ON = ("BUSBAR_LOG_LEVEL", "BUSBAR_TRACE_SAMPLE_RATIO")
PASSED_ON_TO_BILLING = (
    "BUSBAR_STRIPE_API_KEY",
    "BUSBAR_STRIPE_WEBHOOK_SECRET",
    "BUSBAR_LOW_BALANCE_NANOS",
    "BUSBAR_WEBHOOK_ALLOW_HTTP",
    "BUSBAR_WEBHOOK_ALLOWED_NETWORKS",
)
READY_TIMEOUT = timedelta(seconds=90)  # two busy cores, five interpreters, Triton proving itself
# The node agent drains for up to 15 s, then gives Triton 10 s to unload.
LONG_STOP = timedelta(seconds=35)


@dataclass(frozen=True)
class Ports:
    """Every listener of a platform, by name."""

    by_name: Mapping[str, int]

    NAMES = (
        "nats", "nats-monitor", "postgres", "http", "grpc", "account", "billing", "scheduler",
        "telemetry", "otlp-http", "otlp-grpc", *(f"{service}-ops" for service in SERVICES),
    )  # fmt: skip

    @classmethod
    def take(cls, pool: PortPool, wanted: Mapping[str, int]) -> Ports:
        """The wanted ports where they are free, others elsewhere."""
        if unknown := set(wanted) - set(cls.NAMES):
            raise ValueError(
                f"no listener is called {sorted(unknown)}; there are: {', '.join(cls.NAMES)}"
            )
        return cls({name: pool.take(wanted.get(name)) for name in cls.NAMES})

    def __getitem__(self, name: str) -> int:
        return self.by_name[name]

    def url(self, name: str, scheme: str = "http") -> str:
        return f"{scheme}://{LOOPBACK}:{self[name]}"


@dataclass(frozen=True)
class Wiring:
    """What the services' environments are made from."""

    home: Home
    secrets: Secrets
    ports: Ports
    nats: NatsAddress
    postgres: PostgresAddress

    @property
    def otlp_url(self) -> str:
        return os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or self.ports.url("otlp-http")

    def bus(self, user: str) -> dict[str, str]:
        return {
            "BUSBAR_NATS_URL": self.nats.url,
            "BUSBAR_NATS_USER": user,
            "BUSBAR_NATS_PASSWORD": self.secrets.nats[user],
            "BUSBAR_REGION": REGION,
        }


def service_spec(
    service: str, wiring: Wiring, extra: Mapping[str, str], after: list[str]
) -> ProcessSpec:
    """How to run one service; `extra` is its own environment, over what all have."""

    def env() -> Mapping[str, str]:
        return {**_for_all(service, wiring), **_for_one(service, wiring), **extra}

    ops_url = wiring.ports.url(f"{service}-ops")
    late: Environment = env
    return ProcessSpec(
        name=service,
        argv=[sys.executable, "-m", "busbar_" + service.replace("-", "_")],
        cwd=REPO,
        env=late,
        after=after,
        before_start=lambda: _state(service, wiring.home).mkdir(parents=True, exist_ok=True),
        ready=probes.http(f"{ops_url}/readyz"),
        ready_timeout=READY_TIMEOUT,
        stop_grace=LONG_STOP,
    )


def _for_all(service: str, wiring: Wiring) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        **wiring.bus(NATS_USER.get(service, service)),
        "BUSBAR_OPERATOR_TOKEN": wiring.secrets.operator_token,
        "BUSBAR_HTTP_HOST": LOOPBACK,
        "BUSBAR_OPS_PORT": str(wiring.ports[f"{service}-ops"]),
        "BUSBAR_STATE_DIR": str(_state(service, wiring.home)),
        "OTEL_EXPORTER_OTLP_ENDPOINT": wiring.otlp_url,
    }


def _for_one(service: str, wiring: Wiring) -> dict[str, str]:
    ports, secrets = wiring.ports, wiring.secrets
    match service:
        case "gateway":
            return {
                "BUSBAR_HTTP_PORT": str(ports["http"]),
                "BUSBAR_GRPC_PORT": str(ports["grpc"]),
                "BUSBAR_KEY_HMAC_SECRET": secrets.key_hmac,
                "BUSBAR_GATEWAY_ID": "g1",
            }
        case "billing":
            return {
                **{name: os.environ[name] for name in PASSED_ON_TO_BILLING if name in os.environ},
                "BUSBAR_HTTP_PORT": str(ports["billing"]),
                "BUSBAR_ACCOUNT_PORT": str(ports["account"]),
                "BUSBAR_POSTGRES_DSN": wiring.postgres.billing_dsn,
                "BUSBAR_KEY_HMAC_SECRET": secrets.key_hmac,
            }
        case "scheduler":
            return {"BUSBAR_HTTP_PORT": str(ports["scheduler"])}
        case "telemetry":
            return {
                "BUSBAR_HTTP_PORT": str(ports["telemetry"]),
                "BUSBAR_OTLP_GRPC_PORT": str(ports["otlp-grpc"]),
                "BUSBAR_OTLP_HTTP_PORT": str(ports["otlp-http"]),
                "BUSBAR_GATEWAY_URL": ports.url("http"),
                "BUSBAR_BILLING_URL": ports.url("billing"),
                "BUSBAR_SCHEDULER_URL": ports.url("scheduler"),
                "BUSBAR_NATS_MONITOR_URL": wiring.nats.monitor_url,
            }
        case _:
            return {
                "BUSBAR_SITE": SITE,
                "BUSBAR_NODE": NODE,
                "BUSBAR_TRITON_COMMAND": json.dumps(ensure_triton(wiring.home.cache).command),
            }


def _state(service: str, home: Home) -> Path:
    return home.data / service
