"""`busbar bus` where no NATS server answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from busbar_cli.bus_session import CommandBusSettings
from busbar_cli.main import run
from pydantic import SecretStr

COMMANDS = [["verify"], ["apply"], ["letters"], ["letter", "1"], ["replay", "1"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_bus_that_is_away_is_named_soon_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: list[str],
) -> None:
    endpoints = tmp_path / "endpoints.json"
    passwords = {"provisioner": "p", "operator": "o"}
    endpoints.write_text(json.dumps({"nats": "nats://127.0.0.1:1", "nats_credentials": passwords}))
    monkeypatch.setenv("BUSBAR_ENDPOINTS", str(endpoints))
    monkeypatch.setenv("BUSBAR_BUS_CONNECT_TIMEOUT", "PT0.1S")
    status = run(["bus", *command])
    out, err = capsys.readouterr()

    assert (status, out) == (4, "")
    assert err.startswith(
        "busbar: no NATS server at nats://127.0.0.1:1 within 0.1 s; is it running"
    )


def test_a_command_waits_for_the_bus_for_five_seconds() -> None:
    settings = CommandBusSettings(
        nats_url="nats://127.0.0.1:1", nats_user="u", nats_password=SecretStr("p")
    )

    assert settings.bus_connect_timeout.total_seconds() == 5
