"""The control socket of a running platform: one JSON request a line, one JSON answer a line.

It lies in the home's run directory, which only its owner may enter.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

SOCKET_NAME = "control.sock"
MAX_LINE_BYTES = 1024 * 1024

Request = dict[str, Any]
Answer = dict[str, Any]
# Gets a request and an event that is set when the requester is gone.
Handler = Callable[[Request, asyncio.Event], Awaitable[Answer]]


class PlatformNotRunningError(RuntimeError):
    """Nobody answers on the control socket."""


class ControlError(RuntimeError):
    """The platform refused a request; the message says why."""


@contextmanager
def _short_path(run: Path) -> Generator[str]:
    """A socket path within the kernel's 107 bytes, however deep the directory lies."""
    descriptor = os.open(run, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


async def serve(run: Path, handler: Handler) -> asyncio.Server:
    """Listen; requests on one connection are handled in order, connections at the same time."""
    (run / SOCKET_NAME).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with _short_path(run) as path:
        listener.bind(path)

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.Event()
        try:
            while line := await reader.readline():
                answer = await _answer(handler, line, gone)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):  # the peer went away or sent an endless line
            pass
        finally:
            gone.set()
            writer.close()

    return await asyncio.start_unix_server(on_connection, sock=listener, limit=MAX_LINE_BYTES)


async def _answer(handler: Handler, line: bytes, gone: asyncio.Event) -> Answer:
    try:
        return {"ok": True, **await handler(json.loads(line), gone)}
    except Exception as problem:  # noqa: BLE001 - the requester is told; the platform lives on
        return {"ok": False, "problem": str(problem) or type(problem).__name__}


class ControlClient:
    """A connection to a running platform. What was taken over on it ends with it."""

    def __init__(self, run: Path, timeout: timedelta = timedelta(seconds=120)) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout.total_seconds())
        try:
            with _short_path(run) as path:
                self._socket.connect(path)
        except OSError as problem:
            self._socket.close()
            raise PlatformNotRunningError(f"no platform is running in {run.parent}") from problem
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._lines.close()
        self._socket.close()

    def ask(self, command: str, **arguments: Any) -> Answer:
        """Send one request and return its answer; ControlError when it is refused."""
        try:
            self._socket.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = self._lines.readline()
        except OSError as problem:
            raise PlatformNotRunningError(f"the platform went away: {problem}") from problem
        if not line:
            raise PlatformNotRunningError("the platform went away")
        answer: Answer = json.loads(line)
        if not answer["ok"]:
            raise ControlError(answer["problem"])
        return answer
