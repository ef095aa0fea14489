"""The published OpenAPI document is true: schemathesis finds no 5xx and no undocumented status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from busbar_runtime.platform import Platform
from harness.operator import Customer

EXAMPLES_PER_OPERATION = 25
TIME_LIMIT_S = 240
CHECKS = (
    "not_a_server_error,status_code_conformance,"
    "content_type_conformance,response_schema_conformance"
)


@pytest.mark.timeout(TIME_LIMIT_S + 30)
def test_schemathesis_finds_nothing(platform: Platform, customer: Customer, tmp_path: Path) -> None:
    found = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", platform.endpoints["http"] + "/openapi.json"),
            *("--header", f"Authorization: Bearer {customer.key}"),
            *("--checks", CHECKS, "--max-examples", str(EXAMPLES_PER_OPERATION)),
            *("--phases", "examples,coverage,fuzzing", "--seed", "20261121", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )

    assert found.returncode == 0, found.stdout[-6000:]
