"""Whether a model is still at a request: its process is asked, for Triton does not know.

Triton counts a request of a model that answers later as done as soon as the model has taken it.
"""

from __future__ import annotations

import psutil


def model_threads(ancestor_pid: int, model: str) -> int:
    """The threads of a Python model below a process; slow-echo has one more for each request."""
    [stub] = model_processes(ancestor_pid, model)
    return stub.num_threads()


def model_processes(ancestor_pid: int, model: str) -> list[psutil.Process]:
    """Those of a Python model below a process; for a moment one that was unloaded still has one."""
    return [
        process
        for process in psutil.Process(ancestor_pid).children(recursive=True)
        if _is_of(process, model)
    ]


def _is_of(process: psutil.Process, model: str) -> bool:
    try:
        stub = process.name() == "triton_python_backend_stub"
        return stub and any(f"/{model}/" in word for word in process.cmdline()[1:2])
    except psutil.NoSuchProcess:
        return False
