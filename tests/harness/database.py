"""The books, behind the back of billing."""

from __future__ import annotations

import subprocess

from busbar_runtime.platform import Platform
from busbar_runtime.postgres import binary


def in_database(platform: Platform, statement: str) -> None:
    """Change the books past every trigger, as only an administrator can."""
    subprocess.run(
        [binary("psql"), "--quiet", "--no-psqlrc", platform.endpoints["postgres"]],
        input=f"SET session_replication_role = replica; {statement}",
        text=True,
        check=True,
    )
