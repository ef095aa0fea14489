"""A small disk of its own that can be filled: a file system in a file. Needs root and mkfs.ext4."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

POSSIBLE = os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None
NEEDED = "a disk of its own needs root and mkfs.ext4"
_MIB = 1024 * 1024
_BLOCK = bytes(4096)
_LAST_BYTES = 8 * _MIB  # the file system needs some for its own lists


@dataclass(frozen=True)
class Disk:
    """Where it is mounted."""

    path: Path

    def fill(self) -> None:
        """Leave no block of it free."""
        with self._filler.open("wb", buffering=0) as file:
            room = os.statvfs(self.path)
            most = max(1, room.f_bavail * room.f_frsize - _LAST_BYTES)
            os.posix_fallocate(file.fileno(), 0, most)
            file.seek(0, os.SEEK_END)
            try:
                while file.write(_BLOCK) == len(_BLOCK):
                    pass
            except OSError:
                return

    def free(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink(missing_ok=True)

    @property
    def _filler(self) -> Path:
        return self.path / "filler"


@asynccontextmanager
async def disk(place: Path, *, mib: int) -> AsyncIterator[Disk]:
    """Mounted below `place` until the end of the block; nobody may use it any more then."""
    image, path = place / "disk.img", place / "disk"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(mib * _MIB)
    await _run("mkfs.ext4", "-q", "-m", "0", str(image))
    await _run("mount", "-o", "loop", str(image), str(path))
    try:
        yield Disk(path)
    finally:
        await _run("umount", str(path))
        image.unlink()


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said.decode().strip()}")
