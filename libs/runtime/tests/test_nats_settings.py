"""What the bus's servers are told in their environment, read by the real server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from busbar_runtime.fleet import Fleet
from busbar_runtime.home import Home, Secrets
from busbar_runtime.nats import NatsAddress, nats_spec
from busbar_runtime.site_buses import identities_of, site_bus_specs
from busbar_runtime.spec import ProcessSpec

FLEET = Fleet.of(2)


@pytest.mark.parametrize("name", ["josé", "my clönes", 'a "quote"', "a\\b", "日本 🚌"])
def test_a_home_may_be_called_anything(name: str, tmp_path: Path) -> None:
    home = Home.of(tmp_path / name)
    home.make()
    names = [*FLEET.listeners, "nats", "nats-monitor"]
    ports = {listener: 40_000 + number for number, listener in enumerate(names)}
    specs = [
        nats_spec(home, Secrets.of(home), NatsAddress(40_000, 40_001)),
        *site_bus_specs(home, FLEET, identities_of(home, FLEET), ports, {}),
    ]

    complaints = [complaint for spec in specs if (complaint := _complaint(spec))]

    assert complaints == []


def _complaint(spec: ProcessSpec) -> str:
    """Why the server does not take its settings; "" when it does. It does not listen."""
    if spec.before_start is not None:
        spec.before_start()
    assert not callable(spec.env)
    done = subprocess.run(
        [*spec.argv, "-t"],
        cwd=spec.cwd,
        env={**os.environ, **spec.env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr
