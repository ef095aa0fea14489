"""A model is pushed, used, and removed by command, on the real platform."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from busbar_runtime.platform import Platform
from harness.audit import busbar
from harness.operator import Operator

MODEL = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "models" / "simple"
NAME = "unwanted"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model like "simple" under a name of its own."""
    made = shutil.copytree(MODEL, tmp_path / NAME)
    for file, said in (("busbar.yaml", "name: {}"), ("config.pbtxt", 'name: "{}"')):
        text = (made / file).read_text()
        (made / file).write_text(text.replace(said.format("simple"), said.format(NAME), 1))
    return made


async def test_a_model_is_removed_once_nothing_uses_it(
    platform: Platform, operator: Operator, model: Path
) -> None:
    path = f"/admin/v1/deployments/{NAME}"
    _, pushed, _ = await busbar(platform, "model", "push", str(model), "--approve")
    named = (pushed["name"], pushed["version"])
    await operator.json("scheduler", "PUT", path, json={"bundle": NAME, "replicas": 0})
    refused, _, why = await busbar(platform, "model", "rm", *named)
    await operator.call("scheduler", "DELETE", path)
    removed, said, _ = await busbar(platform, "model", "rm", *named)
    unknown, _, _ = await busbar(platform, "model", "rm", *named)
    _, swept, _ = await busbar(platform, "model", "sweep", "--dry-run")

    assert (refused, removed, unknown) == (1, 0, 3)
    assert f"deployment {NAME} serves it" in why
    assert said == {"removed": pushed["digest"]}
    assert swept["young"]["objects"] > 0, "what only it consisted of, and too new to be swept"
    assert swept["used"]["objects"] > swept["young"]["objects"]
    assert swept["condemned"]["objects"] == swept["deleted"]["objects"] == 0
