"""The NATS servers of a fleet of many sites: a hub for each region, a leaf node for each site."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from busbar_messaging.identities import Identities, Keyring, identify
from busbar_messaging.server_config import read_permissions
from busbar_messaging.topology import NodeId, site_domain

from busbar_runtime import probes
from busbar_runtime.fleet import Fleet
from busbar_runtime.home import REPO, Home, write_private, write_private_json
from busbar_runtime.nats import CONFIG, NatsAddress, processors, server_binary
from busbar_runtime.ports import LOOPBACK
from busbar_runtime.spec import ProcessSpec

HUB_CONFIG = REPO / "deploy" / "nats" / "hub.conf"
SITE_CONFIG = REPO / "deploy" / "nats" / "site.conf"
AGENT = "agent"  # everybody's in nats.conf; behind a leaf node each node is somebody of its own
_FIRST_LEADER = timedelta(seconds=60)  # two hubs elect one for their JetStream, under load late


def identities_of(home: Home, fleet: Fleet) -> Identities:
    """Who is who; keys are made at the first start of a home and kept beside its secrets."""
    path = home.run / "keyring.json"
    seeds: dict[str, str] = {}
    with suppress(FileNotFoundError):
        seeds = json.loads(path.read_text())
    keyring = Keyring(int(time.time()), dict(seeds))
    services = read_permissions(CONFIG.read_text())
    del services[AGENT]
    found = identify(keyring, services, fleet.nodes)
    if keyring.seeds != seeds:
        write_private_json(path, keyring.seeds)
    return found


def site_bus_specs(
    home: Home,
    fleet: Fleet,
    identities: Identities,
    ports: Mapping[str, int],
    links: Mapping[str, int],
) -> list[ProcessSpec]:
    """All servers. `links` maps a site to the loopback port that it takes for its region's."""
    hubs = [_hub(home, fleet, identities, ports, region) for region in fleet.regions]
    hub_ports = {node: ports[f"nats-leaf-{node.region}"] for node in fleet.nodes}
    leaves = [
        _leaf(home, identities, ports, node, links.get(node.site, hub_ports[node]))
        for node in fleet.nodes
    ]
    return [*hubs, *leaves]


def _hub(
    home: Home, fleet: Fleet, identities: Identities, ports: Mapping[str, int], region: str
) -> ProcessSpec:
    name = fleet.hubs[region]
    own_routes = f"nats://{_at(ports[f'nats-cluster-{region}'])}"
    said = {
        **_common(home, name, ports, identities, identities.accounts),
        "REGION": region,
        "CLUSTER_LISTEN": _at(ports[f"nats-cluster-{region}"]),
        "CLUSTER_ROUTES": [own_routes],
        "GATEWAY_LISTEN": _at(ports[f"nats-gateway-{region}"]),
        "GATEWAYS": [
            {"name": other, "urls": [f"nats://{_at(ports[f'nats-gateway-{other}'])}"]}
            for other in fleet.regions
        ],
        "LEAFNODES": {"listen": _at(ports[f"nats-leaf-{region}"]), "no_advertise": True},
    }
    return _server(home, name, HUB_CONFIG, said, ports)


def _leaf(
    home: Home, identities: Identities, ports: Mapping[str, int], node: NodeId, hub_port: int
) -> ProcessSpec:
    name = f"nats-{node.site}"
    site = identities.sites[node.region, node.site]
    credentials = home.run / f"{name}.creds"
    remote = {
        "url": f"nats-leaf://{_at(hub_port)}",
        "account": site.account,
        "credentials": str(credentials),
    }
    said = {
        **_common(home, name, ports, identities, site.accounts),
        "DOMAIN": site_domain(node.region, node.site),
        "REMOTES": [remote],
    }

    def give_credentials() -> None:
        write_private(credentials, site.leaf_credentials)

    return _server(home, name, SITE_CONFIG, said, ports, before_start=give_credentials)


def _common(
    home: Home,
    name: str,
    ports: Mapping[str, int],
    identities: Identities,
    accounts: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "SERVER_NAME": name,
        "LISTEN": _at(ports[name]),
        "MONITOR": _at(ports[f"{name}-monitor"]),
        "STORE_DIR": str(home.data / "sites" / name),
        "OPERATOR": identities.operator_jwt,
        "SYSTEM_ACCOUNT": identities.system_account,
        "ACCOUNTS": accounts,
    }


def _server(
    home: Home,
    name: str,
    config: Path,
    said: Mapping[str, Any],
    ports: Mapping[str, int],
    **options: Any,
) -> ProcessSpec:
    address = NatsAddress(ports[name], ports[f"{name}-monitor"])
    return ProcessSpec(
        name=name,
        argv=[server_binary(), "--config", str(config)],
        cwd=home.root,
        env={
            **{f"BUSBAR_NATS_{key}": json.dumps(value) for key, value in said.items()},
            "GOMAXPROCS": str(processors()),
        },
        ready=probes.http(f"{address.monitor_url}/healthz"),
        ready_timeout=_FIRST_LEADER,
        stop_grace=timedelta(seconds=10),
        **options,
    )


def _at(port: int) -> str:
    return f"{LOOPBACK}:{port}"
