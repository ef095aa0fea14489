"""The state directory, which one living agent has at a time."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

log = structlog.get_logger()

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NOTE_BYTES = 200


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
        """Note this run there; returns the run that was noted before, if it has ended for certain.

        Empty where none was, or where it may live on: the lock says nothing of the run in a note
        that was copied, with the disk or the directory. None while another process has the lock.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        noted, _, place = (
            os.pread(self._file, _NOTE_BYTES, 0).decode(errors="replace").partition(" ")
        )
        here = self._place()
        try:
            # Always as long, and over what is there: a disk that is full need not give any room.
            os.pwrite(self._file, f"{run_id} {here}".ljust(_NOTE_BYTES).encode(), 0)
        except OSError as error:
            log.warning("run not noted", reason=error.strerror, file=str(self._path))
        return noted if here and place.strip() == here else ""

    def _place(self) -> str:
        """This very file, as it is since the machine was started; empty where that is not known."""
        with suppress(OSError):
            file = os.fstat(self._file)
            return f"{_BOOT_ID.read_text().strip()} {file.st_dev} {file.st_ino}"
        return ""
