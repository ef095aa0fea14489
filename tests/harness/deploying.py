"""Deployments declared on a running platform by the command line, as an operator does it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from busbar_runtime.platform import Platform


async def deploy(platform: Platform, wanted: Sequence[dict[str, Any]]) -> None:
    """Push, approve and declare them, and wait until they are ready."""
    file = platform.home.root / "deployments.yaml"
    file.write_text(yaml.safe_dump(list(wanted)))
    deploy = [sys.executable, "-m", "busbar_cli", "deploy", str(file), "--approve"]
    command = [*deploy, "--wait", "--timeout", "90"]
    environment = {**os.environ, "BUSBAR_ENDPOINTS": str(platform.home.endpoints_file)}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    assert await process.wait() == 0
