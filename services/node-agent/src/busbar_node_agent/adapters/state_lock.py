"""The state directory, which one living agent has at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self


class StateLock:
    """Locks a state directory until the block, or the process, ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "agent.run"

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def acquire(self, run_id: str) -> str | None:
        """Note this run there; returns the run that was noted before, which has ended for certain.

        Empty where none was, None while another process has the directory.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        before = os.pread(self._file, 100, 0).decode(errors="replace")
        os.truncate(self._file, 0)
        os.pwrite(self._file, run_id.encode(), 0)
        return before
