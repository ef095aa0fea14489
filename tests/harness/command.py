"""The command line as tests call it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Its answer; standard output held nothing else."""
        return json.loads(self.out)


Busbar = Callable[..., Said]
"""Runs the command with these arguments."""
