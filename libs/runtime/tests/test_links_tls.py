"""TLS between the servers of a fleet, with private CAs, as in deploy/hub and deploy/site.

Servers of one region and of another check one another; a site checks its hub with a CA that it was
given. Those who must not come in try beside those who must.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from busbar_messaging.topology import NodeId
from busbar_runtime.fleet import Fleet, Hub
from busbar_runtime.home import REPO, Home
from busbar_runtime.nats import server_binary
from busbar_runtime.ports import LOOPBACK, PortPool
from busbar_runtime.probes import until
from busbar_runtime.site_buses import identities_of, site_bus_specs
from busbar_runtime.spec import ProcessSpec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NATS = REPO / "deploy" / "nats"
DEADLINE_S = 30.0
FLEET = Fleet([NodeId("r1", "s1", "n1"), NodeId("r2", "s2", "n1")], leaf_nodes=True, hub_servers=2)
STRANGERS = (Hub("r2", 9), Hub("r9", 1))
"""One in a region's name with a certificate of another CA, one with a good one and a new name."""


class Authority:
    """A CA, and what it certifies: servers on the loopback."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._own = self._certificate(self._name, self._key.public_key(), ca=True)

    def write(self, directory: Path, *, ca: Authority | None = None) -> None:
        """A certificate with its key, and the CA that it goes by: this one, or another."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
        made = self._certificate(name, key.public_key(), ca=False)
        directory.mkdir(parents=True)
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        (directory / "tls.crt").write_bytes(made.public_bytes(pem))
        pkcs8 = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        (directory / "tls.key").write_bytes(pkcs8)
        (directory / "ca.crt").write_bytes((ca or self).pem)

    @property
    def pem(self) -> bytes:
        """Its own certificate."""
        return self._own.public_bytes(serialization.Encoding.PEM)

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        here = x509.IPAddress(ipaddress.ip_address(LOOPBACK))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([here]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


@dataclass
class Servers:
    """Real nats-servers, each with its log."""

    home: Home
    ports: Mapping[str, int]
    running: list[subprocess.Popen[bytes]]

    def start(self, spec: ProcessSpec, config: Path, **env: str) -> None:
        """Start one with another configuration file than the launcher's."""
        if spec.before_start:
            spec.before_start()
        said = {**os.environ, **cast("Mapping[str, str]", spec.env), **env}
        with (self.home.logs / spec.name).open("wb") as log:
            argv = [server_binary(), "--config", str(config)]
            self.running.append(subprocess.Popen(argv, env=said, stdout=log, stderr=log))

    def log(self, name: str) -> str:
        """What one has said."""
        return (self.home.logs / name).read_text()

    def sees(self, name: str, what: str) -> Any:
        """What one says of its links; nothing while it does not answer."""
        with suppress(OSError):
            url = f"http://{LOOPBACK}:{self.ports[f'{name}-monitor']}/{what}"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return json.load(answer)
        return {}

    def callers(self) -> set[str]:
        """Regions whose servers are linked to one of the first region's: each calls any."""
        seen = [self.sees(hub.name, "gatewayz") for hub in FLEET.hubs_of("r1")]
        return {region for one in seen for region in one.get("inbound_gateways", {})}

    def leaves(self) -> set[str]:
        """Sites' servers that are linked to any hub."""
        seen = [self.sees(hub.name, "leafz") for hub in FLEET.hubs]
        return {leaf["name"] for one in seen for leaf in one.get("leafs") or []}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    pool = PortPool()
    hubs = [*FLEET.hubs, *STRANGERS]
    names = [*(hub.name for hub in hubs), *FLEET.leaves]
    links = [hub.listener(link) for hub in hubs for link in ("cluster", "gateway", "leaf")]
    listeners = [*names, *(f"{name}-monitor" for name in names), *links]
    home = Home(tmp_path / "home", tmp_path / "cache")
    home.make()
    made = Servers(home, {name: pool.take() for name in listeners}, [])
    yield made
    for process in made.running:
        process.kill()
    for process in made.running:
        process.wait(timeout=10)
    pool.close()


def configured(directory: Path, peers: Authority, leaf: Authority, trusted: Authority) -> Path:
    """hub.conf with what deploy/hub includes, and certificates."""
    peers.write(directory / "peers", ca=trusted)
    leaf.write(directory / "leaf")
    for name in ("leaf_tls.conf", "peers_tls.conf"):
        text = (NATS / "tls" / name).read_text()
        (directory / name).write_text(text.replace("/etc/nats-tls", str(directory)))
    (directory / "hub.conf").write_text((NATS / "hub.conf").read_text())
    return directory / "hub.conf"


def over_tls(spec: ProcessSpec) -> ProcessSpec:
    """A site's server that calls its hub as deploy/site does."""
    env = cast("Mapping[str, str]", spec.env)
    return replace(
        spec, env={key: value.replace("nats-leaf://", "tls://") for key, value in env.items()}
    )


async def test_servers_and_sites_know_one_another_by_private_cas(
    servers: Servers, tmp_path: Path
) -> None:
    peers, leaf = Authority("servers of the fleet"), Authority("the hub's name")
    good = configured(tmp_path / "good", peers, leaf, peers)
    false = configured(tmp_path / "false", leaf, leaf, peers)
    leaf.write(tmp_path / "given")
    identities = identities_of(servers.home, FLEET)
    specs = {
        one.name: one for one in site_bus_specs(servers.home, FLEET, identities, servers.ports, {})
    }
    for hub in FLEET.hubs:
        servers.start(specs[hub.name], good)
    servers.start(
        over_tls(specs["nats-s1"]), NATS / "site.conf", SSL_CERT_DIR=str(tmp_path / "given")
    )
    servers.start(over_tls(specs["nats-s2"]), NATS / "site.conf")
    for stranger, config in zip(STRANGERS, (false, good), strict=True):
        spec = stranger_spec(specs["nats"], servers.ports, stranger)
        servers.start(spec, config)

    async def all_tried() -> bool:
        called = "".join(servers.log(hub.name) for hub in FLEET.hubs)
        return (
            servers.leaves() >= {"nats-s1"}
            and servers.callers() >= {"r2"}
            and servers.sees("nats", "routez").get("num_routes", 0) > 0
            and "unknown authority" in servers.log("nats-s2")
            and "TLS gateway handshake error: tls: client didn't provide a certificate" in called
            and 'Rejecting connection from gateway "r9"' in called
        )

    async with asyncio.timeout(DEADLINE_S):
        await until(all_tried)

    assert servers.leaves() == {"nats-s1"}
    assert servers.callers() == {"r2"}
    assert set(servers.sees("nats", "gatewayz")["outbound_gateways"]) == {"r2"}
    assert "unknown authority" not in servers.log("nats-s1")


def stranger_spec(like: ProcessSpec, ports: Mapping[str, int], stranger: Hub) -> ProcessSpec:
    """A server outside the fleet that calls its first region's gateway."""
    said = dict(cast("Mapping[str, str]", like.env))
    own = {
        "SERVER_NAME": stranger.name,
        "LISTEN": f"{LOOPBACK}:{ports[stranger.name]}",
        "MONITOR": f"{LOOPBACK}:{ports[f'{stranger.name}-monitor']}",
        "STORE_DIR": f"{json.loads(said['BUSBAR_NATS_STORE_DIR'])}-{stranger.name}",
        "REGION": stranger.region,
        "CLUSTER_ROUTES": [f"nats://{LOOPBACK}:{ports[stranger.listener('cluster')]}"],
        **{
            f"{link.upper()}_LISTEN": f"{LOOPBACK}:{ports[stranger.listener(link)]}"
            for link in ("cluster", "gateway", "leaf")
        },
    }
    changed = {f"BUSBAR_NATS_{key}": json.dumps(value) for key, value in own.items()}
    return replace(like, name=stranger.name, env={**said, **changed})
