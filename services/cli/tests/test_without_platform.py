"""Where no platform runs, or one that does not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness.command import Busbar


@pytest.mark.parametrize("arguments", [["fleet"], ["bus", "verify"], ["tenant", "list"]])
def test_without_a_platform_it_says_how_to_start_one(nobody: Busbar, arguments: list[str]) -> None:
    failed = nobody(*arguments)

    assert (failed.status, failed.out) == (4, "")
    assert "./just up" in failed.err


def test_a_platform_that_does_not_answer(
    nobody: Busbar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(
        json.dumps({"admin": {"telemetry": "http://127.0.0.1:9"}, "keys": {"operator": "x"}})
    )
    monkeypatch.setenv("BUSBAR_ENDPOINTS", str(file))

    assert nobody("fleet").status == 4
    assert "names no address of billing" in nobody("tenant", "list").err.replace("\n", " ")
