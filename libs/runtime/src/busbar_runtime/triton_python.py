"""Which Python runs Triton's models: one of 3.11 or 3.12 that has a shared libpython.

Not 3.13: with numpy 2 the server's Python backend returns empty outputs or crashes (measured with
its stub for 3.13 and numpy 2.4, DLPack outputs included), and numpy 1.26, the last before 2, has no
build for 3.13. A 3.13 host therefore runs its models in another interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUPPORTED = ("3.11", "3.12")
FETCHED = "3.12"
FETCH_TIMEOUT_S = 120
ASK_TIMEOUT_S = 20

_ASK = """
import json, sys, sysconfig
v = sysconfig.get_config_var
print(json.dumps({
    "executable": getattr(sys, "_base_executable", sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "folders": [v("LIBDIR"), sys.base_prefix + "/lib", "/usr/lib/" + (v("MULTIARCH") or "")],
}))
"""


class NoModelPythonError(RuntimeError):
    """No usable interpreter; the message says what to install."""


@dataclass(frozen=True)
class ModelPython:
    """An interpreter and the shared library of the same version."""

    executable: str
    version: str
    libpython: Path


def find_model_python(cache: Path, *, uv: str, progress: Callable[[str], None]) -> ModelPython:
    """The running interpreter if it fits, else one already on this machine, else a fetched one."""
    for executable in _candidates(uv):
        found = _usable(executable)
        if found is not None:
            return found
    progress(f"triton: no Python {' or '.join(SUPPORTED)} with libpython here, fetching {FETCHED}")
    fetched = _fetch(cache, uv)
    if fetched is not None:
        return fetched
    raise NoModelPythonError(
        f"Triton's models need Python {' or '.join(SUPPORTED)} with its shared library "
        "(libpython3.x.so.1.0); this machine has none and one could not be fetched. "
        "Install one, for example `apt install python3.11 libpython3.11`, or run "
        f"`uv python install {FETCHED}` (behind a proxy, set UV_PYTHON_INSTALL_MIRROR), then "
        "try again."
    )


def _candidates(uv: str) -> Iterator[str]:
    yield sys.executable
    for version in SUPPORTED:
        yield from pythons_here(uv, version)


def pythons_here(uv: str, version: str) -> Iterator[str]:
    """Interpreters of a version, such as 3.12, that uv, the system or pyenv have on this machine;
    nothing is fetched."""
    found = _output([uv, "python", "find", "--no-python-downloads", "--system", version])
    if found:
        yield found
    yield from map(str, sorted(Path("/usr/bin").glob(f"python{version}")))
    pyenv = Path.home() / ".pyenv" / "versions"
    yield from map(str, sorted(pyenv.glob(f"{version}*/bin/python{version}"), reverse=True))


def _usable(executable: str) -> ModelPython | None:
    answer = _output([executable, "-I", "-c", _ASK])
    if answer is None:
        return None
    told = json.loads(answer)
    if told["version"] not in SUPPORTED:
        return None
    name = f"libpython{told['version']}.so.1.0"
    for folder in filter(None, told["folders"]):
        library = Path(folder) / name
        if library.exists():
            return ModelPython(told["executable"], told["version"], library.resolve())
    return None


def _fetch(cache: Path, uv: str) -> ModelPython | None:
    where = ["--install-dir", str(cache / "python"), "--no-bin"]
    _output([uv, "python", "install", "--quiet", *where, FETCHED], timeout_s=FETCH_TIMEOUT_S)
    for executable in sorted((cache / "python").glob(f"cpython-{FETCHED}*/bin/python{FETCHED}")):
        found = _usable(str(executable))
        if found is not None:
            return found
    return None


def _output(argv: list[str], *, timeout_s: float = ASK_TIMEOUT_S) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
