"""A model directory as a bundle: what it consists of, the same wherever it is packed.

Files are cut where their content says (FastCDC, Xia et al., USENIX ATC'16), so that bytes put in
or taken out leave the chunks behind them as they were.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from busbar_contracts.scheduler.v1.bundle_pb2 import BundleChunk, BundleContents, BundledFile
from busbar_messaging.bundles.contents import CHUNK_BYTES_MAX, MANIFEST_FILE, digest_of
from fastcdc import fastcdc

from busbar_cli import plain_yaml
from busbar_cli.failures import CommandError, Exit

_CHUNK_BYTES_MIN, _CHUNK_BYTES_USUAL = 256 * 1024, 1024 * 1024
_SKIPPED = {"__pycache__"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk stands on this disk."""

    path: Path
    offset: int
    size_bytes: int

    def read(self, sha256: bytes) -> bytes:
        """The chunk; raises CommandError when the file is another by now."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size_bytes)
        if hashlib.sha256(content).digest() != sha256:
            raise CommandError(f"{self.path} changed while it was being pushed; push it again")
        return content


@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed."""

    contents: bytes
    """Serialized BundleContents."""
    chunks: Mapping[bytes, Place]
    """By SHA-256."""

    @property
    def digest(self) -> str:
        """The bundle's."""
        return digest_of(self.contents)


def must_be_directory(directory: Path) -> None:
    """Refuse what is no directory, or can be no path."""
    if not os.path.isdir(directory):  # noqa: PTH112 - it is False also for what can be no path
        raise CommandError(f"{directory} is not a directory", Exit.USAGE)


def pack(directory: Path, bytes_max: int) -> Packed:
    """Look through the files of `directory`, in order of their names.

    More than `bytes_max` together are refused before anything is read. Owners, modes and times do
    not shape the digest. Hidden files and __pycache__ are skipped; links are refused.
    """
    must_be_directory(directory)
    if not (directory / MANIFEST_FILE).is_file():
        raise CommandError(
            f"{directory} has no {MANIFEST_FILE}: it is not a model directory", Exit.USAGE
        )
    files, chunks = list[BundledFile](), dict[bytes, Place]()
    try:
        found = _files(directory)
        _must_fit(found, bytes_max)
        name, version = _name_and_version(directory / MANIFEST_FILE)
        for path in found:
            pieces = list(_pieces(path))
            listed = [BundleChunk(sha256=one, size_bytes=at.size_bytes) for one, at in pieces]
            files.append(
                BundledFile(
                    path=path.relative_to(directory).as_posix(),
                    size_bytes=sum(at.size_bytes for _, at in pieces),
                    chunks=listed,
                )
            )
            chunks.update(pieces)
    except OSError as error:
        raise CommandError(f"{directory} cannot be packed: {error}") from error
    contents = BundleContents(name=name, version=version, files=files)
    return Packed(contents.SerializeToString(deterministic=True), chunks)


def _must_fit(files: list[Path], bytes_max: int) -> None:
    sizes = {path: path.stat().st_size for path in files}
    if (size_bytes := sum(sizes.values())) > bytes_max:
        largest = max(files, key=lambda path: sizes[path])
        raise CommandError(
            f"{size_bytes} bytes are more than the {bytes_max} that a bundle may have; "
            f"{largest} has {sizes[largest]}",
            Exit.USAGE,
        )


def _name_and_version(path: Path) -> tuple[str, str]:
    try:
        said: Any = plain_yaml.load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"{path} is not plain YAML: {error}", Exit.USAGE) from error
    found = said if isinstance(said, dict) else {}
    for key in ("name", "version"):
        if not isinstance(found.get(key), str):
            raise CommandError(f"{path} has no {key}, which is a string", Exit.USAGE)
    return found["name"], found["version"]


def _pieces(path: Path) -> Iterator[tuple[bytes, Place]]:
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for cut in fastcdc(
            content,
            min_size=_CHUNK_BYTES_MIN,
            avg_size=_CHUNK_BYTES_USUAL,
            max_size=CHUNK_BYTES_MAX,
        ):
            piece = content[cut.offset : cut.offset + cut.length]
            yield hashlib.sha256(piece).digest(), Place(path, cut.offset, cut.length)


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
        elif not path.is_dir():
            raise CommandError(f"{path} is no plain file; a bundle holds nothing else", Exit.USAGE)
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())
