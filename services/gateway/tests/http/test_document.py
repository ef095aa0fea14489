"""The published OpenAPI document holds whatever is thrown at the edge."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
]


def test_generated_requests_find_no_server_error_and_no_undocumented_status(
    ready_edge: Any, key: str, tmp_path: Path
) -> None:
    outcome = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{ready_edge.url}/openapi.json",
            *("--url", ready_edge.url),
            *("--header", f"Authorization: Bearer {key}"),
            *("--checks", ",".join(CHECKS)),
            *("--phases", "coverage,fuzzing"),
            *("--max-examples", "5"),
            *("--seed", "1"),
            "--continue-on-failure",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
    )

    assert outcome.returncode == 0, outcome.stdout[-8000:] + outcome.stderr[-2000:]
