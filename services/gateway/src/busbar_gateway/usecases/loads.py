"""What this gateway has carried, for each deployment; read by heartbeats and metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Load:
    """Counts since the gateway started."""

    completed_count: int = 0
    failed_count: int = 0
    refused_count: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
