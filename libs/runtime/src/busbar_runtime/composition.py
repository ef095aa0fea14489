"""The whole platform as nodes: parts, one-shot steps and services, in starting order."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib.util import find_spec

from busbar_runtime.home import REPO
from busbar_runtime.nats import nats_spec
from busbar_runtime.postgres import postgres_nodes
from busbar_runtime.services import (
    SERVICES,
    Wiring,
    agent_spec,
    package_of,
    service_spec,
)
from busbar_runtime.site_buses import site_bus_specs
from busbar_runtime.spec import Node, ProcessSpec, StepSpec

DEMO = REPO / "deploy" / "demo"
AFTER: Mapping[str, list[str]] = {
    "telemetry": ["bus"],
    "billing": ["bus", "migrations"],
    "scheduler": ["bus"],
    "node-agent": ["bus", "triton-install"],
    "gateway": ["bus"],
}

ServiceEnvironments = Mapping[str, Mapping[str, str]]


def platform_nodes(
    wiring: Wiring, extra: ServiceEnvironments, links: Mapping[str, int]
) -> Sequence[Node]:
    """Every node, first to start first; stopping goes the other way.

    `links` maps a site to the port that its leaf node takes for its region's.
    """
    services = [
        name
        for service in SERVICES
        if _exists(package_of(service))
        for name in (wiring.fleet.agents if service == "node-agent" else [service])
    ]
    buses = _buses(wiring, links)
    return [
        *buses,
        *postgres_nodes(wiring.home, wiring.secrets, wiring.postgres),
        *_bus(wiring, [bus.name for bus in buses]),
        _migrations(wiring),
        *_installs(wiring),
        *[_service(name, wiring, extra.get(name, {})) for name in services],
        *_demo(wiring, services),
    ]


def _buses(wiring: Wiring, links: Mapping[str, int]) -> list[ProcessSpec]:
    home, ports = wiring.home, wiring.ports.by_name
    if wiring.identities is None:
        return [nats_spec(home, wiring.secrets, wiring.nats)]
    return site_bus_specs(home, wiring.fleet, wiring.identities, ports, links)


def _service(name: str, wiring: Wiring, extra: Mapping[str, str]) -> ProcessSpec:
    if name in wiring.fleet.agents:
        return agent_spec(name, wiring, extra, AFTER["node-agent"])
    return service_spec(name, wiring, extra, AFTER[name])


def _exists(package: str) -> bool:
    return find_spec(package) is not None and find_spec(f"{package}.__main__") is not None


def _bus(wiring: Wiring, servers: Sequence[str]) -> list[Node]:
    """Make the streams, then keep those that live in memory across a restart of NATS."""
    env = {
        **wiring.bus("provisioner"),
        "BUSBAR_REGIONS": json.dumps(wiring.fleet.regions),
        "BUSBAR_SITES": json.dumps(wiring.fleet.sites),
        "BUSBAR_LEAF_NODES": json.dumps(wiring.fleet.leaf_nodes),
        "BUSBAR_REPLICAS": str(wiring.fleet.hub_servers),
    }
    provision = [sys.executable, "-m", "busbar_messaging.provision"]

    async def always() -> bool:
        return True

    return [
        StepSpec(name="bus", argv=[*provision, "apply"], cwd=REPO, env=env, after=servers),
        ProcessSpec(
            name="provisioner",
            argv=[*provision, "watch"],
            cwd=REPO,
            env=env,
            after=["bus"],
            ready=always,
        ),
    ]


def _migrations(wiring: Wiring) -> StepSpec:
    return StepSpec(
        name="migrations",
        argv=[sys.executable, "-m", "busbar_billing.migrate"],
        cwd=REPO,
        env={
            "BUSBAR_POSTGRES_ADMIN_DSN": wiring.postgres.admin_dsn,
            "BUSBAR_POSTGRES_DSN": wiring.postgres.billing_dsn,
        },
        after=["postgres-database"],
    )


def _installs(wiring: Wiring) -> list[Node]:
    """What takes long the first time: Triton, and the demo models' training."""
    cache = ["--cache", str(wiring.home.cache)]
    return [
        StepSpec(
            name="triton-install",
            argv=[sys.executable, "-m", "busbar_runtime", "install-triton", *cache],
            cwd=REPO,
            shown=True,
            timeout=timedelta(minutes=10),
        ),
        StepSpec(
            name="demo-models",
            argv=[sys.executable, str(DEMO / "build" / "build_models.py"), *cache],
            cwd=REPO,
            after=["triton-install"],
            shown=True,
            timeout=timedelta(minutes=10),
        ),
    ]


def _demo(wiring: Wiring, services: Sequence[str]) -> list[Node]:
    """Make the demo tenant and deploy the demo models, through the admin APIs like anybody."""
    if not (DEMO / "bootstrap.py").exists():
        return []
    return [
        StepSpec(
            name="demo",
            argv=[sys.executable, str(DEMO / "bootstrap.py"), "--home", str(wiring.home.root)],
            cwd=REPO,
            env={"BUSBAR_HOME": str(wiring.home.root), "BUSBAR_CACHE": str(wiring.home.cache)},
            after=[*services, "demo-models"],
            shown=True,
            timeout=timedelta(minutes=5),
        )
    ]
