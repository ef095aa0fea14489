"""Triton Inference Server from a wheel: installed once into the cache, proven with real numbers.

The wheel `nvidia-pytriton` carries a CPU build of tritonserver 2.51 and its Python backend. Its
Python half is not used. Three things must fit together, or the server answers OK with nothing in
it: a backend stub for Python 3.x, the shared libpython of the same 3.x, and a model environment
of the same 3.x with numpy < 2.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from busbar_runtime.child import tethered
from busbar_runtime.triton_command import triton_command
from busbar_runtime.triton_probe import prove
from busbar_runtime.triton_python import ModelPython, find_model_python

TRITON_VERSION = "0.7.0"
INSTALL_TIMEOUT_S = 300
LOCKS = Path(__file__).resolve().parents[4] / "deploy" / "triton"
PLACEHOLDERS = ("http_port", "grpc_port", "metrics_port", "repository", "otlp_url")

Progress = Callable[[str], None]


class TritonUnavailableError(RuntimeError):
    """Triton cannot be installed or started here; the message says what to do next."""


@dataclass(frozen=True)
class TritonInstall:
    """A proven install.

    `command` is an argv template that needs nothing else: it clears the environment and sets its
    own, so models see none of the caller's secrets. Fill the placeholders with `argv()` or plain
    `str.replace`: {http_port}, {grpc_port}, {metrics_port}, {repository} (an existing directory,
    of any name) and {otlp_url} (full traces URL, e.g. http://127.0.0.1:4318/v1/traces).
    """

    root: Path
    python: str
    command: list[str]

    def argv(self, **values: str | int | Path) -> list[str]:
        """The command with every placeholder filled; KeyError names a missing one."""
        filled = list(self.command)
        for name in PLACEHOLDERS:
            filled = [part.replace(f"{{{name}}}", str(values[name])) for part in filled]
        return filled


def ensure_triton(cache: Path, progress: Progress = print) -> TritonInstall:
    """The install under `cache`, made now unless it is there. Safe to call from many processes."""
    cache = cache.resolve()
    if "{" in str(cache) or "}" in str(cache):
        raise TritonUnavailableError(
            f"{cache}: braces in the cache path clash with the placeholders"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "triton.lock"):
        installed = _installed(cache)
        if installed is not None:
            return installed
        return _install(cache, progress)


def _install(cache: Path, progress: Progress) -> TritonInstall:
    python = find_model_python(cache, uv=find_uv(cache), progress=progress)
    root = cache / _folder_name()
    for leftover in (root, *cache.glob("triton-*.partial*")):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{root.name}.partial-", dir=cache))
    partial.chmod(0o755)
    progress(f"triton: fetching nvidia-pytriton {TRITON_VERSION} (47 MB)")
    _pip(cache, ["--target", str(partial / "server")], LOCKS / "requirements.lock")
    progress(f"triton: model environment for Python {python.version} ({python.executable})")
    _model_env(cache, partial / "model-env", python)
    _lay_out_backend(partial, python)
    partial.rename(root)
    install = TritonInstall(root=root, python=python.executable, command=triton_command(root))
    progress("triton: comparing real numbers from a probe model")
    prove(install.argv, work=root / "probe")
    _write_atomically(root / "install.json", json.dumps(asdict(install), default=str, indent=2))
    progress(f"triton: ready in {root}")
    return install


def _installed(cache: Path) -> TritonInstall | None:
    marker = cache / _folder_name() / "install.json"
    if not marker.exists():
        return None
    data = json.loads(marker.read_text())
    moved = data["root"] != str(marker.parent)
    libraries = [path.exists() for path in (marker.parent / "lib").iterdir()]
    if moved or not Path(data["python"]).exists() or not all(libraries):
        return None
    return TritonInstall(root=marker.parent, python=data["python"], command=data["command"])


def _folder_name() -> str:
    """Changes with anything that changes the result, so an upgrade never meets old files."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for name in ("requirements.lock", "model-env.lock"):
        digest.update((LOCKS / name).read_bytes())
    for source in ("triton.py", "triton_command.py", "triton_python.py"):
        digest.update(Path(__file__).with_name(source).read_bytes())
    return f"triton-{TRITON_VERSION}-{digest.hexdigest()[:10]}"


def find_uv(cache: Path) -> str:
    """The `uv` executable: $UV, then PATH, then the tools that ./just fetched."""
    tools = [cache.parent / "tools" / "bin" / "uv", LOCKS.parents[1] / ".busbar/tools/bin/uv"]
    beside = Path(sys.executable).parent / "uv"
    for candidate in (os.environ.get("UV"), shutil.which("uv"), beside, *tools):
        if candidate and os.access(candidate, os.X_OK):
            return str(candidate)
    raise TritonUnavailableError("uv not found: run ./just setup, or set UV to its path")


def _pip(cache: Path, where: list[str], lock: Path) -> None:
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"]
    _run([find_uv(cache), "pip", "install", "--quiet", *options, *where, "-r", str(lock)])


def _model_env(cache: Path, venv: Path, python: ModelPython) -> None:
    _run([find_uv(cache), "venv", "--quiet", "--python", python.executable, str(venv)])
    # Each model is a process of its own, and none may write what it compiled.
    options = ["--compile-bytecode", "--python", str(venv / "bin" / "python")]
    _pip(cache, options, LOCKS / "model-env.lock")


def _run(argv: list[str]) -> None:
    done = subprocess.run(
        tethered(argv), capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        what = " ".join(argv[:3])
        raise TritonUnavailableError(
            f"{what} failed ({done.returncode}): {done.stderr.strip()[-1500:]}\n"
            "Check the network and the package index, then run the command again."
        )


def _lay_out_backend(root: Path, python: ModelPython) -> None:
    """The backend finds its stub and utils beside its library, and libpython by LD_LIBRARY_PATH."""
    tritonserver = root / "server" / "pytriton" / "tritonserver"
    backend = root / "backends" / "python"
    backend.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy2(tritonserver / "backends" / "python" / name, backend / name)
    stub = tritonserver / "python_backend_stubs" / python.version / "triton_python_backend_stub"
    shutil.copy2(stub, backend / stub.name)
    (backend / stub.name).chmod(0o755)
    (tritonserver / "bin" / "tritonserver").chmod(0o755)
    (root / "lib").mkdir()
    (root / "lib" / python.libpython.name).symlink_to(python.libpython)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
