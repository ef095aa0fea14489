"""Cost records on the node's disk, from before their answers leave until the site has stored them.

A file for each run of the agent, which has all of its blocks from the beginning: a disk that fills
up later takes nothing from it. Written without waiting for the disk: an agent that is killed loses
nothing, a machine without power what it wrote in its last seconds.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog

from busbar_node_agent.domain.journal import MARK_BYTES, Halves, frame, mark, read

log = structlog.get_logger()


class Journal:
    """Of this run, and what earlier runs left behind."""

    def __init__(self, folder: Path, run_id: str, bytes_max: int) -> None:
        self._path = folder / run_id
        self._bytes = bytes_max
        self._halves = Halves((bytes_max - MARK_BYTES) // 2)
        self._file = -1
        self._stored_until = 0
        self.trouble = ""
        """Why there is no room for records; empty while there is."""

    def open(self) -> bool:
        """Get the room, from any thread; False, with `trouble`, when the disk has none."""
        if self._file >= 0:
            return True
        file = -1
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(file, 0, self._bytes)
        except OSError as error:
            self.trouble = f"no room for cost records: {error.strerror}: {self._path.parent}"
            if file >= 0:
                self._remove(file)
            return False
        self._file, self.trouble = file, ""
        return True

    @property
    def closed(self) -> bool:
        """Whether nothing new may be begun."""
        return bool(self.trouble) or self._file < 0 or self._halves.closed

    def write(self, number: int, record: bytes) -> bool:
        """Keep a record; False when there is no room."""
        framed = frame(number, record)
        at = self._halves.place(len(framed)) if self._file >= 0 else None
        if at is None:
            return False
        try:
            os.pwrite(self._file, framed, at)
        except OSError as error:
            self.trouble = f"cost records cannot be kept: {error.strerror}: {self._path}"
            return False
        self._halves.written(number, len(framed))
        return True

    def stored(self, until: int) -> None:
        """Everything before this number is stored elsewhere."""
        self._stored_until = until
        self._halves.stored(until)
        self.try_again()

    def try_again(self) -> None:
        """Note what is stored elsewhere; when that can be written, the rest can be, too."""
        if self._file >= 0:
            with contextlib.suppress(OSError):  # then some of it is sent again, and told apart
                os.pwrite(self._file, mark(self._stored_until), 0)
                self.trouble = ""

    def left_behind(self) -> dict[str, list[tuple[int, bytes]]]:
        """By earlier run, its records that were not stored; files without any are removed.

        What cannot be read stays where it is, and is told of.
        """
        found = dict[str, list[tuple[int, bytes]]]()
        for path in self._others():
            try:
                records = read(path.read_bytes())
                if records:
                    found[path.name] = records
                else:
                    path.unlink()
            except OSError as error:
                log.warning("cost records left aside", reason=error.strerror, file=str(path))
        return found

    def settled(self, run_id: str) -> None:
        """What an earlier run left behind is stored."""
        with contextlib.suppress(OSError):  # then it is sent again, and told apart
            (self._path.parent / run_id).unlink()

    def close(self, *, empty: bool) -> None:
        """The run ends; what is not stored stays for the next one."""
        file, self._file = self._file, -1
        if file >= 0:
            self._remove(file) if empty else os.close(file)

    def _others(self) -> list[Path]:
        try:
            return sorted(set(self._path.parent.iterdir()) - {self._path})
        except OSError:
            return []

    def _remove(self, file: int) -> None:
        os.close(file)
        with contextlib.suppress(OSError):
            self._path.unlink()
