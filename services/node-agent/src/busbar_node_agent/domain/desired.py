"""From what a node shall hold and what it holds to what it does next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Assignment:
    """A replica that the node shall hold."""

    deployment: str
    bundle_digest: str
    slots: int
    input_tokens_output: str = ""
    output_tokens_output: str = ""
    cached_tokens_output: str = ""
    queue: str = ""
    """Where its work is pulled from; "" for the queue called by the deployment."""


@dataclass(frozen=True, slots=True)
class Present:
    """A replica that the node holds in whatever state; `leaving` when it was told to go."""

    assignment: Assignment
    leaving: bool


@dataclass(frozen=True, slots=True)
class Steps:
    """What to do; each deployment is named at most once."""

    start: tuple[Assignment, ...]
    stop: tuple[str, ...]
    adjust: tuple[Assignment, ...]


def next_steps(desired: Mapping[str, Assignment], present: Mapping[str, Present]) -> Steps:
    """Decide. A new bundle for a deployment starts only once the old replica has left."""
    start = tuple(wanted for name, wanted in desired.items() if name not in present)
    stop = tuple(
        name
        for name, here in present.items()
        if not here.leaving and _must_go(desired.get(name), here.assignment)
    )
    adjust = tuple(
        wanted
        for name, wanted in desired.items()
        if name in present
        and not present[name].leaving
        and name not in stop
        and wanted != present[name].assignment
    )
    return Steps(start, stop, adjust)


def _must_go(wanted: Assignment | None, here: Assignment) -> bool:
    return wanted is None or wanted.bundle_digest != here.bundle_digest
