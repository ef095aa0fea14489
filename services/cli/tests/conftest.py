"""What commands are tried with."""

from __future__ import annotations

from pathlib import Path

import pytest

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
