"""A model directory as a tar archive that is the same, byte for byte, wherever it is made."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from busbar_cli.failures import CommandError, Exit

_READ_BYTES = 1024 * 1024
_SKIPPED = {"__pycache__"}


@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed."""

    digest: str
    size_bytes: int


def pack(directory: Path, into: BinaryIO) -> Packed:
    """Write the files of `directory` into an empty file as a tar, in order of their names.

    Owners, modes and times are left out, so that they do not shape the digest. Hidden
    files and __pycache__ are skipped; links are refused.
    """
    if not directory.is_dir():
        raise CommandError(f"{directory} is not a directory", Exit.USAGE)
    if not (directory / "busbar.yaml").is_file():
        raise CommandError(
            f"{directory} has no busbar.yaml: it is not a model directory", Exit.USAGE
        )
    try:
        with tarfile.open(fileobj=into, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path in _files(directory):
                _add(tar, path, path.relative_to(directory).as_posix())
    except (ValueError, OSError) as error:
        raise CommandError(f"{directory} cannot be packed: {error}") from error
    size_bytes = into.tell()
    into.seek(0)
    digest = hashlib.sha256()
    while chunk := into.read(_READ_BYTES):
        digest.update(chunk)
    return Packed(f"sha256:{digest.hexdigest()}", size_bytes)


def _files(directory: Path) -> list[Path]:
    found = list[Path]()
    for path in directory.rglob("*"):
        parts = path.relative_to(directory).parts
        if any(part.startswith(".") or part in _SKIPPED for part in parts):
            continue
        if path.is_symlink():
            raise CommandError(f"{path} is a link; a bundle holds plain files only", Exit.USAGE)
        if path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = path.stat().st_size
    info.mode = 0o644
    with path.open("rb") as file:
        tar.addfile(info, file)
