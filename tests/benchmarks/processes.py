"""CPU and memory of the platform's processes, read from the operating system."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import psutil

SERVICES = ("gateway", "billing", "scheduler", "node-agent", "telemetry")


@dataclass(frozen=True)
class Usage:
    """CPU seconds and resident MiB by part."""

    cpu_s: dict[str, float]
    rss_mib: dict[str, float]

    def cpu_since(self, earlier: Usage) -> dict[str, float]:
        """CPU seconds by part since `earlier`."""
        return {name: now - earlier.cpu_s.get(name, 0.0) for name, now in self.cpu_s.items()}


def triton_process(agent_pid: int) -> psutil.Process:
    """The Triton that the node agent supervises; raises LookupError when there is none."""
    for child in psutil.Process(agent_pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "tritonserver" in child.name():
                return child
    raise LookupError(f"the node agent (pid {agent_pid}) runs no tritonserver")


def option(process: psutil.Process, name: str) -> str:
    """The value of `--name=value` or `--name value` on a process's command line."""
    words = process.cmdline()
    for index, word in enumerate(words):
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
        if word == f"--{name}":
            return words[index + 1]
    raise LookupError(f"{process.name()} was started without --{name}")


def usage(pids: dict[str, int]) -> Usage:
    """Read every part once; Triton and its model processes count as `triton`."""
    cpu: dict[str, float] = {}
    rss: dict[str, float] = {}
    for name, pid in pids.items():
        process = psutil.Process(pid)
        _add(cpu, rss, name, process)
        helpers = process.children(recursive=True)
        owner = "triton" if name == "node-agent" else name
        for helper in helpers:
            _add(cpu, rss, owner, helper)
    return Usage(cpu, rss)


def _add(cpu: dict[str, float], rss: dict[str, float], name: str, process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        cpu[name] = cpu.get(name, 0.0) + times.user + times.system
        rss[name] = rss.get(name, 0.0) + process.memory_info().rss / 2**20
