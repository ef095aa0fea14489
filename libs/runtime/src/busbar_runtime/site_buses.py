"""The NATS servers of a fleet of many sites: a hub for each region, a leaf node for each site."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from busbar_messaging.identities import Identities, Keyring, identify
from busbar_messaging.server_config import read_permissions
from busbar_messaging.topology import NodeId, site_domain

from busbar_runtime import probes
from busbar_runtime.fleet import Fleet, Hub
from busbar_runtime.home import REPO, Home, write_private, write_private_json
from busbar_runtime.nats import CONFIG, NatsAddress, as_setting, processors, server_binary
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
    hubs = [_hub(home, fleet, identities, ports, hub) for hub in fleet.hubs]

    def ways(node: NodeId) -> list[int]:
        if node.site in links:
            return [links[node.site]]
        return [ports[hub.listener("leaf")] for hub in fleet.hubs_of(node.region)]

    leaves = [_leaf(home, identities, ports, node, ways(node)) for node in fleet.nodes]
    return [*hubs, *leaves]


def _hub(
    home: Home, fleet: Fleet, identities: Identities, ports: Mapping[str, int], hub: Hub
) -> ProcessSpec:
    def listen(link: str) -> str:
        return _at(ports[hub.listener(link)])

    def urls(link: str, region: str) -> list[str]:
        return [f"nats://{_at(ports[one.listener(link)])}" for one in fleet.hubs_of(region)]

    said = {
        **_common(home, hub.name, ports, identities, identities.accounts),
        "REGION": hub.region,
        "CLUSTER_LISTEN": listen("cluster"),
        "CLUSTER_ROUTES": urls("cluster", hub.region),
        "GATEWAY_LISTEN": listen("gateway"),
        "GATEWAY_ADVERTISE": "",
        "GATEWAYS": [{"name": one, "urls": urls("gateway", one)} for one in fleet.regions],
        "LEAF_LISTEN": listen("leaf"),
    }
    return _server(home, hub.name, HUB_CONFIG, said, ports)


def _leaf(
    home: Home,
    identities: Identities,
    ports: Mapping[str, int],
    node: NodeId,
    hub_ports: Sequence[int],
) -> ProcessSpec:
    name = f"nats-{node.site}"
    site = identities.sites[node.region, node.site]
    credentials = home.run / f"{name}.creds"
    remote = {
        "urls": [f"nats-leaf://{_at(port)}" for port in hub_ports],
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
            **{f"BUSBAR_NATS_{key}": as_setting(value) for key, value in said.items()},
            "GOMAXPROCS": str(processors()),
        },
        ready=probes.http(f"{address.monitor_url}/healthz"),
        ready_timeout=_FIRST_LEADER,
        stop_grace=timedelta(seconds=10),
        **options,
    )


def _at(port: int) -> str:
    return f"{LOOPBACK}:{port}"
