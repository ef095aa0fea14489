"""Who is who in a fleet of many sites: keys, JWTs and credentials, as files.

    .venv/bin/python deploy/make_identities.py identities r1/s1/n1 r1/s1/n2 r2/s2/n1

The nodes named are all there shall be; run it again with more of them to add some. It writes

    identities/keyring.json           every seed: keep it where no server can read it
    identities/hub.env                for hubs: operator, accounts (deploy/nats/hub.conf)
    identities/services/USER.creds    for a service: its BUSBAR_NATS_PASSWORD
    identities/sites/REGION.SITE/     all that a site is given, see deploy/site/compose.yaml
    identities/kubernetes.json        the hubs' and the services', for kubectl apply -f; beside it
                                      python3 deploy/make_secrets.py kubernetes-hub makes the rest
    identities/sites/REGION.SITE/kubernetes.json    a site's, see deploy/site/kubernetes

Keys stay the same as long as the keyring does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import make_secrets
from busbar_messaging.identities import Identities, Keyring, identify
from busbar_messaging.server_config import read_permissions
from busbar_messaging.topology import NodeId, site_domain

CONFIG = Path(__file__).resolve().parent / "nats" / "nats.conf"
AGENT = "agent"  # everybody's in nats.conf; behind a leaf node each node is somebody of its own


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("nodes", nargs="+", type=NodeId.parse, metavar="REGION/SITE/NODE")
    given = parser.parse_args()
    keyring = Keyring(int(time.time()))
    with suppress(FileNotFoundError):
        keyring.seeds.update(json.loads((given.directory / "keyring.json").read_text()))
    services = {
        user: may for user, may in read_permissions(CONFIG.read_text()).items() if user != AGENT
    }
    _write_all(given.directory, keyring, identify(keyring, services, given.nodes))


def _write_all(directory: Path, keyring: Keyring, found: Identities) -> None:
    _write(directory / "keyring.json", json.dumps(keyring.seeds, indent=2))
    shared = {"OPERATOR": found.operator_jwt, "SYSTEM_ACCOUNT": found.system_account}
    _write(directory / "hub.env", _server_env({**shared, "ACCOUNTS": dict(found.accounts)}))
    _write(directory / "kubernetes.json", make_secrets.kubernetes(hub_secrets(found)))
    for user, credentials in found.services.items():
        _write(directory / "services" / f"{user}.creds", credentials)
    for (region, site), identity in found.sites.items():
        place = directory / "sites" / f"{region}.{site}"
        _write(place / ".env", site_env(found, region, site))
        secrets = site_secrets(found, region, site)
        _write(place / "kubernetes.json", make_secrets.kubernetes(secrets))
        # Read by the server's container, whose user owns nothing here; the directory is private.
        _write(place / "leaf.creds", identity.leaf_credentials, mode=0o444)


def hub_secrets(found: Identities) -> dict[str, dict[str, str]]:
    """What deploy/hub asks for: Kubernetes secret name → key → value."""
    return {
        "busbar-nats-identities": {
            "operator": json.dumps(found.operator_jwt),
            "system-account": json.dumps(found.system_account),
            "accounts": json.dumps(dict(found.accounts)),
        },
        "busbar-nats": dict(found.services),
    }


def site_secrets(found: Identities, region: str, site: str) -> dict[str, dict[str, str]]:
    """What deploy/site/kubernetes asks for, in the same form."""
    identity = found.sites[region, site]
    return {
        "busbar-nats-identities": {
            "operator": json.dumps(found.operator_jwt),
            "system-account": json.dumps(found.system_account),
            "accounts": json.dumps(dict(identity.accounts)),
            "server-name": json.dumps(f"{region}-{site}"),
            "domain": json.dumps(site_domain(region, site)),
            "site-account": identity.account,
        },
        "busbar-leaf": {"leaf.creds": identity.leaf_credentials},
        "busbar-nodes": {f"{name}.creds": said for name, said in identity.nodes.items()},
    }


def site_env(found: Identities, region: str, site: str) -> str:
    """The variables that deploy/site/compose.yaml asks for, as an env file."""
    identity = found.sites[region, site]
    server = {
        "OPERATOR": found.operator_jwt,
        "SYSTEM_ACCOUNT": found.system_account,
        "ACCOUNTS": dict(identity.accounts),
        "SERVER_NAME": f"{region}-{site}",
        "DOMAIN": site_domain(region, site),
    }
    own = {"SITE_ACCOUNT": identity.account, "REGION": region, "SITE": site}
    nodes = {
        f"NODE_{name.replace('-', '_').upper()}_CREDENTIALS": credentials
        for name, credentials in identity.nodes.items()
    }
    lines = [f"{name}='{value}'\n" for name, value in {**own, **nodes}.items()]
    return _server_env(server) + "".join(lines)


def _server_env(said: Mapping[str, object]) -> str:
    """Variables of a server, as its configuration reads them: JSON, quotes and all."""
    return "".join(f"NATS_{name}='{json.dumps(value)}'\n" for name, value in said.items())


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    path.touch(mode)
    path.chmod(0o600)
    path.write_text(text)
    path.chmod(mode)


if __name__ == "__main__":
    main()
