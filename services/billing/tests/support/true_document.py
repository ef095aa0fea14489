"""Schemathesis against an OpenAPI document: no 5xx, no undocumented status, no other shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKS = (
    "not_a_server_error,status_code_conformance,"
    "content_type_conformance,response_schema_conformance"
)
LIMIT_S = 240


def complaints(url: str, token: str, examples: int, *options: str, cwd: Path) -> str:
    """The end of what schemathesis said where something was wrong; "" where nothing was."""
    found = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
            *("--checks", CHECKS, "--max-examples", str(examples)),
            *("--phases", "coverage,fuzzing", "--seed", "20261121", "--no-color"),
            *options,
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return found.stdout[-15000:] or found.stderr if found.returncode else ""
