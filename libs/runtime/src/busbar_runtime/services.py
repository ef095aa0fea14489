"""The five services on a developer's machine: who they are on the bus and where they listen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from busbar_messaging.identities import Identities
from busbar_messaging.topology import HUB_DOMAIN, NodeId, node_inbox

from busbar_runtime import probes
from busbar_runtime.fleet import REGIONS, Fleet
from busbar_runtime.home import REPO, Home, Secrets
from busbar_runtime.nats import NatsAddress
from busbar_runtime.ports import LOOPBACK, PortPool, PortRefusedError
from busbar_runtime.postgres import PostgresAddress
from busbar_runtime.spec import Environment, ProcessSpec
from busbar_runtime.triton import ensure_triton

REGION = REGIONS[0]
"""Where the services are; agents are wherever their sites are."""
SERVICES = ("telemetry", "billing", "scheduler", "node-agent", "gateway")
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
# How long an agent that is started again waits for its models: less than READY_TIMEOUT, so that
# slow ones do not keep the platform from coming up.
MODELS_READY_WITHIN = "PT60S"
# The node agent drains for up to 15 s, then gives Triton 10 s to unload.
LONG_STOP = timedelta(seconds=35)


@dataclass(frozen=True)
class Ports:
    """Every listener of a platform, by name."""

    by_name: Mapping[str, int]

    NAMES = (
        "nats", "nats-monitor", "postgres", "http", "grpc", "account", "billing", "scheduler",
        "telemetry", "otlp-http", "otlp-grpc",
        *(f"{service}-ops" for service in SERVICES if service != "node-agent"),
    )  # fmt: skip
    """Those that every platform has; see Fleet.listeners for the others."""

    @classmethod
    def take(cls, pool: PortPool, wanted: Mapping[str, int], fleet: Fleet) -> Ports:
        """The wanted ports, or PortRefusedError; for all others any that are free."""
        names = (*cls.NAMES, *fleet.listeners)
        if unknown := set(wanted) - set(names):
            raise ValueError(
                f"no listener is called {sorted(unknown)}; there are: {', '.join(names)}"
            )
        # First, so that nobody who may have any port gets one of these.
        given = {name: _take_for(name, port, pool) for name, port in wanted.items()}
        return cls({name: given[name] if name in given else pool.take() for name in names})

    def __getitem__(self, name: str) -> int:
        return self.by_name[name]

    def url(self, name: str, scheme: str = "http") -> str:
        return f"{scheme}://{LOOPBACK}:{self[name]}"


def _take_for(name: str, port: int, pool: PortPool) -> int:
    try:
        return pool.take(port)
    except PortRefusedError as problem:
        raise PortRefusedError(f"{name}: {problem}") from problem


@dataclass(frozen=True)
class Wiring:
    """What the services' environments are made from."""

    home: Home
    secrets: Secrets
    ports: Ports
    nats: NatsAddress
    postgres: PostgresAddress
    fleet: Fleet
    identities: Identities | None
    """Where sites have a NATS of their own: who is who there."""

    @property
    def otlp_url(self) -> str:
        return os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or self.ports.url("otlp-http")

    @property
    def otlp_grpc(self) -> str | None:
        """The same sink's gRPC address; None where spans go to somebody else's."""
        if self.otlp_url != self.ports.url("otlp-http"):
            return None
        return self.ports.url("otlp-grpc").removeprefix("http://")

    @property
    def bus_secrets(self) -> Mapping[str, str]:
        """Each bus user's password, or its credentials."""
        return self.identities.services if self.identities else self.secrets.nats

    def bus(self, user: str) -> dict[str, str]:
        return {
            "BUSBAR_NATS_URL": self.nats.url,
            "BUSBAR_NATS_USER": user,
            "BUSBAR_NATS_PASSWORD": self.bus_secrets[user],
            "BUSBAR_REGION": REGION,
        }

    def bus_of_node(self, node: NodeId) -> dict[str, str]:
        """The bus as a node agent has it: its site's, where that has one."""
        if self.identities is None:
            return self.bus("agent")
        return {
            "BUSBAR_NATS_URL": f"nats://{LOOPBACK}:{self.ports[f'nats-{node.site}']}",
            "BUSBAR_NATS_USER": str(node),
            "BUSBAR_NATS_PASSWORD": self.identities.sites[node.region, node.site].nodes[node.node],
            "BUSBAR_NATS_INBOX": node_inbox(node),
            "BUSBAR_HUB_DOMAIN": HUB_DOMAIN,
        }


def service_spec(
    service: str, wiring: Wiring, extra: Mapping[str, str], after: list[str]
) -> ProcessSpec:
    """How to run one service; `extra` is its own environment, over what all have."""

    def env() -> Mapping[str, str]:
        return {**wiring.bus(service), **_for_all(service, wiring), **_of(service, wiring), **extra}

    return _spec(service, package_of(service), wiring, env, after)


def agent_spec(
    agent: str, wiring: Wiring, extra: Mapping[str, str], after: list[str]
) -> ProcessSpec:
    """How to run the agent of one node."""
    node = wiring.fleet.agents[agent]

    def env() -> Mapping[str, str]:
        own = {
            "BUSBAR_REGION": node.region,
            "BUSBAR_SITE": node.site,
            "BUSBAR_NODE": node.node,
            **_trusting(wiring.secrets),
            "BUSBAR_COME_UP_WITHIN": MODELS_READY_WITHIN,
            "BUSBAR_TRITON_COMMAND": json.dumps(ensure_triton(wiring.home.cache).command),
        }
        return {**wiring.bus_of_node(node), **_for_all(agent, wiring), **own, **extra}

    return _spec(agent, package_of("node-agent"), wiring, env, after)


def package_of(service: str) -> str:
    """The Python package that is run."""
    return "busbar_" + service.replace("-", "_")


def _spec(
    service: str, package: str, wiring: Wiring, env: Environment, after: list[str]
) -> ProcessSpec:
    ops_url = wiring.ports.url(f"{service}-ops")
    return ProcessSpec(
        name=service,
        argv=[sys.executable, "-m", package],
        cwd=REPO,
        env=env,
        after=after,
        before_start=lambda: _state(service, wiring.home).mkdir(parents=True, exist_ok=True),
        ready=probes.http(f"{ops_url}/readyz"),
        ready_timeout=READY_TIMEOUT,
        stop_grace=LONG_STOP,
    )


def _for_all(service: str, wiring: Wiring) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "BUSBAR_HTTP_HOST": LOOPBACK,
        "BUSBAR_OPS_PORT": str(wiring.ports[f"{service}-ops"]),
        "BUSBAR_STATE_DIR": str(_state(service, wiring.home)),
        "OTEL_EXPORTER_OTLP_ENDPOINT": wiring.otlp_url,
    }


def _of(service: str, wiring: Wiring) -> dict[str, str]:
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
                **_administered(secrets),
                "BUSBAR_HTTP_PORT": str(ports["billing"]),
                "BUSBAR_ACCOUNT_PORT": str(ports["account"]),
                "BUSBAR_POSTGRES_DSN": wiring.postgres.billing_dsn,
                "BUSBAR_KEY_HMAC_SECRET": secrets.key_hmac,
                "BUSBAR_SITES": json.dumps(wiring.fleet.sites),
            }
        case "scheduler":
            return {
                **_administered(secrets),
                "BUSBAR_HTTP_PORT": str(ports["scheduler"]),
                **_trusting(secrets),
            }
        case _:  # telemetry
            return {
                **_administered(secrets),
                "BUSBAR_HTTP_PORT": str(ports["telemetry"]),
                "BUSBAR_OTLP_GRPC_PORT": str(ports["otlp-grpc"]),
                "BUSBAR_OTLP_HTTP_PORT": str(ports["otlp-http"]),
                "BUSBAR_GATEWAY_URL": ports.url("http"),
                "BUSBAR_BILLING_URL": ports.url("billing"),
                "BUSBAR_SCHEDULER_URL": ports.url("scheduler"),
                "BUSBAR_NATS_MONITOR_URL": wiring.nats.monitor_url,
            }


def _administered(secrets: Secrets) -> dict[str, str]:
    """For those with an admin API, and for no other: whoever has the token is the operator."""
    return {"BUSBAR_OPERATOR_TOKEN": secrets.operator_token}


def _trusting(secrets: Secrets) -> dict[str, str]:
    return {"BUSBAR_BUNDLE_APPROVERS": json.dumps([secrets.signing_key_public])}


def _state(service: str, home: Home) -> Path:
    return home.data / service
