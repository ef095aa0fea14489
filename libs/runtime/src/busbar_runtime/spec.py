"""What to run: long-running processes and one-shot steps, as plain values."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from busbar_runtime.probes import Probe

# A value, or how to get it once everything this node comes after is ready.
Environment = Mapping[str, str] | Callable[[], Mapping[str, str]]


@dataclass(frozen=True)
class RestartPolicy:
    """Capped exponential backoff that forgets failures after a stable while."""

    first_delay: timedelta = timedelta(seconds=0.5)
    longest_delay: timedelta = timedelta(seconds=15)
    stable_after: timedelta = timedelta(seconds=30)

    def delay(self, failures: int) -> timedelta:
        """Wait before the start that follows the given number of failures in a row, from 1."""
        return min(self.first_delay * 2 ** min(failures - 1, 16), self.longest_delay)


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """A process that should be running, and how to tell that it is of use."""

    name: str
    argv: Sequence[str]
    cwd: Path
    ready: Probe
    env: Environment = field(default_factory=dict[str, str])
    after: Sequence[str] = ()
    before_start: Callable[[], None] | None = None
    ready_timeout: timedelta = timedelta(seconds=30)
    restart: RestartPolicy = RestartPolicy()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace: timedelta = timedelta(seconds=10)
    wrapper: Sequence[str] = ()  # argv prefix that changes credentials, see postgres.py


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """Something to run to its end, once per start of the platform."""

    name: str
    argv: Sequence[str]
    cwd: Path
    env: Environment = field(default_factory=dict[str, str])
    after: Sequence[str] = ()
    before_start: Callable[[], None] | None = None
    stdin: str = ""
    shown: bool = False  # its output goes to the console: it takes long and tells progress
    timeout: timedelta = timedelta(seconds=60)
    wrapper: Sequence[str] = ()


Node = ProcessSpec | StepSpec


def with_predecessors(nodes: Sequence[Node], names: Sequence[str]) -> list[Node]:
    """The named nodes and everything they come after, in the given order."""
    by_name = {node.name: node for node in nodes}
    wanted: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in by_name:
            raise ValueError(f"no part is called {name!r}; there are: {', '.join(by_name)}")
        if name not in wanted:
            wanted.add(name)
            left += by_name[name].after
    return [node for node in nodes if node.name in wanted]
