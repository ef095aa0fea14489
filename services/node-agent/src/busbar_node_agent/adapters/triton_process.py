"""Triton as our child process, or as somebody else's that we are attached to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from busbar_node_agent.adapters.triton_rpc import TritonRpc

log = structlog.get_logger()

LOOPBACK = "127.0.0.1"
_TETHER = str(Path(__file__).with_name("tether.py"))
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where POSIX shared memory lives on Linux
_SHM_OPTION = "shm-region-prefix-name="
_LINE_BYTES_MAX = 4096
_SETTLE_TIMEOUT_S = 10.0
_POLL_S = 0.1
_COMPLAINTS_MAX = 50
_COMPLAINT_WITHIN_S = 1.0
"""It answers before what it says of it has come through the pipe."""
_LEVELS = {"W": "warning", "E": "error", "F": "critical"}


@dataclass(frozen=True, slots=True)
class TritonCommand:
    """How to start Triton: an argv in which {http_port}, {grpc_port}, {metrics_port},
    {repository} and {otlp_url} are replaced.
    """

    argv: Sequence[str]
    repository: Path
    otlp_url: str
    note: Path
    """Where the last one started is noted, for an agent that comes after one that was killed."""

    async def start(self) -> TritonChild:
        """Start it on free ports. It is not live yet."""
        await asyncio.to_thread(self._clear_away_predecessor)
        http_port, grpc_port, metrics_port = _free_ports(3)
        values = {
            "http_port": http_port,
            "grpc_port": grpc_port,
            "metrics_port": metrics_port,
            "repository": self.repository,
            "otlp_url": self.otlp_url,
        }
        argv = [_filled(part, values) for part in self.argv]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _TETHER, str(os.getpid()), *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        shm_prefix = _shm_prefix(argv)
        self.note.write_text(json.dumps({"pid": process.pid, "shm_prefix": shm_prefix}))
        log.info("triton started", pid=process.pid, grpc_port=grpc_port, http_port=http_port)
        rpc = TritonRpc(f"{LOOPBACK}:{grpc_port}")
        return TritonChild(process, rpc, shm_prefix, _names(self.repository, process.pid))

    def _clear_away_predecessor(self) -> None:
        """Kill what outlived the Triton last noted, and remove its shared memory.

        The kernel kills Triton with its agent, but not the processes of its models.
        """
        try:
            noted = json.loads(self.note.read_text())
            session, prefix = int(noted["pid"]), str(noted["shm_prefix"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        for pid in _session_members(session, _names(self.repository, session)):
            log.warning("process of an earlier triton killed", pid=pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _sweep(prefix)
        self.note.unlink(missing_ok=True)


class TritonChild:
    """One run of a Triton that we started."""

    attached = False

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        rpc: TritonRpc,
        shm: str,
        repository_names: Sequence[str],
    ) -> None:
        self.rpc = rpc
        self.pid = process.pid
        self._process = process
        self._shm_prefix = shm
        self._repository_names = repository_names
        self._complaints = deque[tuple[float, str]](maxlen=_COMPLAINTS_MAX)
        listening = _log_lines(process.stdout, self._complaints)
        self._logger = asyncio.create_task(listening, name="triton-log")

    def stopped(self) -> list[int]:
        """Processes of its models that somebody has stopped, as SIGSTOP does."""
        return [pid for pid in _in_session(self.pid) if pid != self.pid and _is_stopped(pid)]

    def kill(self, model: str) -> list[int]:
        """Kill the processes of a model, which ends its loading; their process ids."""
        marks = [f"{name}/{model}/" for name in self._repository_names]
        pids = [pid for pid in _session_members(self.pid, marks) if pid != self.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return pids

    async def complaint(self, model: str, since_s: float) -> str:
        """What it last said is wrong with a model since time.monotonic(); "" for nothing.

        It names the reason in its log alone where it cannot read a model's configuration.
        """
        until_s = time.monotonic() + _COMPLAINT_WITHIN_S
        while True:
            for said_s, text in reversed(self._complaints):
                if said_s >= since_s and f"'{model}'" in text:
                    return text
            if time.monotonic() >= until_s:
                return ""
            await asyncio.sleep(_POLL_S)

    async def settle(self) -> None:
        """Nothing: it begins empty."""

    async def exited(self) -> str:
        """Wait until it is gone; returns how it went."""
        status = await self._process.wait()
        return f"exited with signal {-status}" if status < 0 else f"exited with status {status}"

    async def end(self, grace: timedelta = timedelta(0)) -> None:
        """Stop it, at once without a grace, and remove what it leaves in shared memory."""
        if grace and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace.total_seconds())
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # its model processes too
        await self._process.wait()
        self._logger.cancel()
        await self.rpc.close()
        await asyncio.to_thread(_sweep, self._shm_prefix)


@dataclass(frozen=True, slots=True)
class TritonAddress:
    """A Triton that somebody else runs, such as a container beside ours."""

    grpc_address: str

    async def start(self) -> TritonAttachment:
        """Connect to it. It may not be live yet."""
        return TritonAttachment(TritonRpc(self.grpc_address))


class TritonAttachment:
    """One connection to a Triton that is not ours to stop."""

    attached = True
    pid = 0

    def __init__(self, rpc: TritonRpc) -> None:
        self.rpc = rpc

    def stopped(self) -> list[int]:
        """None that could be seen from here."""
        return []

    def kill(self, model: str) -> list[int]:
        """None that could be reached from here."""
        del model
        return []

    async def complaint(self, model: str, since_s: float) -> str:
        """Nothing that could be heard from here."""
        del model, since_s
        return ""

    async def settle(self) -> None:
        """Unload what it still holds from before: what is wanted is loaded again, verified."""
        for model, state in (await self.rpc.states(_SETTLE_TIMEOUT_S)).items():
            if state in {"READY", "LOADING"}:
                await self.rpc.unload(model, _SETTLE_TIMEOUT_S)
        while "UNLOADING" in (await self.rpc.states(_SETTLE_TIMEOUT_S)).values():
            await asyncio.sleep(_POLL_S)

    async def exited(self) -> str:
        """Never: only its silence tells."""
        await asyncio.Event().wait()
        return ""

    async def end(self, grace: timedelta = timedelta(0)) -> None:
        """Disconnect."""
        del grace
        await self.rpc.close()


async def _log_lines(
    stream: asyncio.StreamReader | None, complaints: deque[tuple[float, str]]
) -> None:
    """Turn the server's output into our log lines, and keep its newest errors.

    The tables it draws are left out.
    """
    rest = b""
    while stream is not None and (data := await stream.read(65_536)):
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[-_LINE_BYTES_MAX:]
        for line in lines:
            text = line[:_LINE_BYTES_MAX].decode(errors="replace").strip()
            if text and text[0] not in "+|":
                words = text.split(" ", 2)
                level = _LEVELS.get(words[1], "info") if len(words) > 1 else "info"
                getattr(log, level)("triton says", line=text)
                if level in {"error", "critical"}:
                    complaints.append((time.monotonic(), _said(text)))


def _said(line: str) -> str:
    """What stands behind time, process and place in the source: a JSON string, as a rule."""
    text = line.partition("] ")[2] or line
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _filled(part: str, values: dict[str, int | Path | str]) -> str:
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", str(value))
    return part


def _shm_prefix(argv: Sequence[str]) -> str:
    """What this Triton's shared memory regions begin with; "" when the command does not say."""
    named = [part.rpartition(_SHM_OPTION)[2] for part in argv if _SHM_OPTION in part]
    return named[0] if named else ""


def _names(repository: Path, triton: int) -> tuple[str, str]:
    """What the processes of models call the repository: its own name, or where that does not do
    what libs/runtime's triton_command.py gives it.
    """
    return str(repository), f"/proc/{triton}/fd/8"


def _session_members(session: int, marks: Sequence[str]) -> list[int]:
    """Processes of a session whose command line has one of `marks` in it, so that a session id
    which meanwhile belongs to somebody else harms nobody.
    """
    found: list[int] = []
    for pid in _in_session(session):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if any(os.fsencode(mark) in command for mark in marks):
                found.append(pid)
    return found


def _in_session(session: int) -> list[int]:
    found: list[int] = []
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def _is_stopped(pid: int) -> bool:
    """By proc(5): the state stands behind the name, which is in parentheses."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split(maxsplit=1)[0] == b"T"


def _sweep(prefix: str) -> None:
    """Remove the regions of a dead Triton; a killed one cannot do it itself."""
    if not prefix or not _SHARED_MEMORY.is_dir():
        return
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in held]
    for server in held:
        server.close()
    return ports
