"""What commands are tried with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from busbar_cli.main import run
from busbar_runtime.platform import Platform
from harness.command import Busbar, Said
from harness.stand_in import Answer, StandIn, answering

MANIFEST = """\
name: small
version: "1"
task: tensor
slots: 2
memory_mb: 64
price_class: tensor-small
warmup:
  inputs: {A: {datatype: INT32, shape: [1], data: [1]}}
  expect: {B: {datatype: INT32, shape: [1], data: [1]}}
"""
CONFIG = """\
backend: "python"
input [{ name: "A", data_type: TYPE_INT32, dims: [1] }]
output [{ name: "B", data_type: TYPE_INT32, dims: [1] }]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that can be pushed."""
    made = tmp_path / "small"
    (made / "1").mkdir(parents=True)
    (made / "busbar.yaml").write_text(MANIFEST)
    (made / "config.pbtxt").write_text(CONFIG)
    (made / "1" / "model.py").write_text("pass\n")
    return made


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The three services that have an admin API, and no nodes."""
    parts = ["billing", "scheduler", "telemetry", "provisioner"]
    running = Platform(tmp_path_factory.mktemp("cli"), parts=parts)
    running.launch()
    yield running
    running.shutdown()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Busbar:
    """The command where no platform runs."""
    monkeypatch.delenv("BUSBAR_OPERATOR_TOKEN", raising=False)
    monkeypatch.setenv("BUSBAR_ENDPOINTS", "/nowhere/endpoints.json")

    def busbar(*arguments: str) -> Said:
        capsys.readouterr()
        status = run(arguments)
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return busbar


@pytest.fixture
def busbar(nobody: Busbar, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Busbar:
    """The command on the running platform."""
    monkeypatch.setenv("BUSBAR_ENDPOINTS", str(platform.home.endpoints_file))
    return nobody


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """See StandIn."""
    with ExitStack() as running:

        def meet(answer: Answer) -> None:
            at = running.enter_context(answering(answer))
            endpoints = tmp_path / "endpoints.json"
            known = {"admin": {"scheduler": at}, "keys": {"operator": "op_x"}}
            endpoints.write_text(json.dumps(known))
            monkeypatch.setenv("BUSBAR_ENDPOINTS", str(endpoints))

        yield meet
