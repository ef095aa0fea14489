"""Each process is given the secrets that it needs, and nobody else's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from busbar_runtime.composition import platform_nodes
from busbar_runtime.daemon import LaunchSettings, wire
from busbar_runtime.home import Home
from busbar_runtime.ports import PortPool
from busbar_runtime.services import Wiring

SERVICES = {
    "telemetry": {"bus telemetry", "operator token"},
    "billing": {"bus billing", "operator token", "key hmac", "database of billing"},
    "scheduler": {"bus scheduler", "operator token"},
    "gateway": {"bus gateway", "key hmac"},
    "provisioner": {"bus provisioner"},
}


@pytest.mark.parametrize(
    ("sites", "agents"),
    [
        (0, {"node-agent": {"bus agent"}}),
        (3, {f"node-agent-s{number}": {f"bus s{number}"} for number in (1, 2, 3)}),
    ],
    ids=["one node", "three sites"],
)
def test_nobody_is_given_a_secret_that_is_not_its_own(
    tmp_path: Path, sites: int, agents: Mapping[str, set[str]]
) -> None:
    home = Home(tmp_path / "home", Home.of().cache)
    home.make()
    wiring = wire(home, PortPool(), LaunchSettings(sites=sites))
    known = secrets_of(wiring)
    held = {
        name: {secret for secret, text in known.items() if any(text in value for value in given)}
        for name, given in environments(wiring).items()
        if name in {*SERVICES, *agents}
    }

    assert held == {**SERVICES, **agents}


def secrets_of(wiring: Wiring) -> Mapping[str, str]:
    """Every secret there is, by whose it is."""
    secrets = wiring.secrets
    sites = wiring.identities.sites if wiring.identities else {}
    return {
        "operator token": secrets.operator_token,
        "key hmac": secrets.key_hmac,
        "signing key": secrets.signing_key,
        "database of billing": secrets.postgres_billing,
        "database of the administrator": secrets.postgres_admin,
        **{f"bus {user}": password for user, password in wiring.bus_secrets.items()},
        **{f"bus {site}": one.nodes["n1"] for (_, site), one in sites.items()},
        **{f"link of {site}": one.leaf_credentials for (_, site), one in sites.items()},
    }


def environments(wiring: Wiring) -> Mapping[str, list[str]]:
    """What the launcher sets for each process."""
    said = {
        node.name: node.env() if callable(node.env) else node.env
        for node in platform_nodes(wiring, {}, {})
    }
    return {name: list(values.values()) for name, values in said.items()}
