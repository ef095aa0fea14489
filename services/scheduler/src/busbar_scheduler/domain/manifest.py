"""What the scheduler needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """What kind of work a model does."""

    TENSOR = "tensor"
    EMBED = "embed"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle's manifest as placements and routes carry it; 0 and "" mean "none"."""

    name: str
    version: str
    task: Task
    slots: int
    memory_mib: int
    price_class: str
    max_input_tokens: int = 0
    max_output_tokens: int = 0
    max_payload_bytes: int = 0
    chat_template: str = ""
    input_tokens_output: str = ""
    output_tokens_output: str = ""
    stop: tuple[str, ...] = ()
    power_w: int = 0
    """What one busy replica draws; 0 when its author did not say."""
    cached_tokens_output: str = ""


def prepared_otherwise(was: Manifest, new: Manifest) -> list[str]:
    """In what a request that was prepared for one version is not as the other wants it."""
    return [
        what
        for what, differs in (
            ("task", was.task != new.task),
            ("chat template", was.chat_template != new.chat_template),
            ("stop strings", was.stop != new.stop),
        )
        if differs
    ]
