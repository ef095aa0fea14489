"""The cache of bundles on disk: files by what they consist of, shared by bundles.

bundles/<digest>   a SealedBundle, once its files have been asked for; when it was last used is
                   when it was last modified
files/<key>        a whole file
partial/<key>      one that chunks are still missing of; what is there already is kept
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from busbar_contracts.scheduler.v1.bundle_pb2 import BundleContents, BundledFile, SealedBundle
from busbar_errors import Unavailable
from google.protobuf.message import DecodeError

from busbar_node_agent.domain.caching import Cached, bytes_of, evictions

_MIB = 1024 * 1024
_FREE_BYTES_MIN = 256 * _MIB
_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk in its place."""

    offset: int
    size_bytes: int
    sha256: bytes


def pieces_of(file: BundledFile) -> list[Piece]:
    """The file's chunks in their places."""
    found, offset = list[Piece](), 0
    for chunk in file.chunks:
        found.append(Piece(offset, chunk.size_bytes, chunk.sha256))
        offset += chunk.size_bytes
    return found


def key_of(file: BundledFile) -> str:
    """What files of the same content have in common."""
    listed = b"".join(chunk.sha256 for chunk in file.chunks)
    return hashlib.sha256(listed).hexdigest()


class CacheDisk:
    """Synchronous, for threads; raises Unavailable when the disk is full or fails."""

    def __init__(self, root: Path, bytes_max: int) -> None:
        self.root = root
        self.bytes_max = bytes_max
        self._bundles, self._files, self._partial = (
            root / name for name in ("bundles", "files", "partial")
        )
        self._make()
        for entry in set(self.root.iterdir()) - self._folders:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    @property
    def _folders(self) -> set[Path]:
        return {self._bundles, self._files, self._partial}

    def _make(self) -> None:
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)

    # --- bundles

    def sealed(self, hex_digits: str) -> SealedBundle | None:
        """A bundle as it was noted, unchecked; None when it was not, or cannot be read."""
        try:
            return SealedBundle.FromString((self._bundles / hex_digits).read_bytes())
        except (OSError, DecodeError):
            return None

    def note(self, hex_digits: str, sealed: SealedBundle) -> None:
        """From now on the bundle's files have a place here."""
        with _own_terms(self.root):
            self._make()  # again, where somebody has deleted it
            scratch = self._bundles / f".{hex_digits}"
            scratch.write_bytes(sealed.SerializeToString())
            scratch.replace(self._bundles / hex_digits)

    def touch(self, hex_digits: str) -> None:
        """The bundle was used just now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._bundles / hex_digits)

    def drop(self, hex_digits: str) -> None:
        """Forget a bundle, and every file that no other one has."""
        (self._bundles / hex_digits).unlink(missing_ok=True)
        kept = {key for cached in self._cached() for key in cached.files}
        for folder in (self._files, self._partial):
            for path in folder.iterdir():
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    def reserve(self, hex_digits: str, contents: BundleContents, kept: Collection[str]) -> set[str]:
        """Make room for a noted bundle; the keys of files of which nothing is there yet.

        The least recently used bundles but `kept` (digests, hex) go for it. Raises Unavailable, and
        forgets the bundle, when that is not enough.
        """
        files = {key_of(file): file.size_bytes for file in contents.files}
        lacking = {
            key: size
            for key, size in files.items()
            if not self.file(key).exists() and not self.partial(key).exists()
        }
        if not lacking:
            return set()
        try:
            with _own_terms(self.root):
                self._evict({*kept, hex_digits}, sum(lacking.values()))
                for key, size_bytes in lacking.items():
                    self._allocate(key, size_bytes)
                return set(lacking)
        except Unavailable:
            self.drop(hex_digits)
            raise

    def _evict(self, kept: set[str], bytes_to_write: int) -> None:
        cached, free = self._cached(), shutil.disk_usage(self.root).free
        needed = bytes_to_write + _FREE_BYTES_MIN
        gone = evictions(
            cached, kept, bytes_max=self.bytes_max, bytes_to_free=max(0, needed - free)
        )
        for one in gone:
            self.drop(one)
        rest_bytes = bytes_of(one for one in cached if one.digest not in gone)
        if rest_bytes > self.bytes_max:
            raise Unavailable(
                f"the bundle cache is full: what is placed here takes {_mib(rest_bytes)}, "
                f"BUSBAR_BUNDLE_CACHE_MIB_MAX is {self.bytes_max // _MIB}",
                _RETRY_AFTER_S,
            )
        if (free := shutil.disk_usage(self.root).free) < needed:
            raise Unavailable(
                f"the disk is full: {_mib(free)} free in {self.root}, {_mib(needed)} needed",
                _RETRY_AFTER_S,
            )

    def _allocate(self, key: str, size_bytes: int) -> None:
        """Give a file its blocks now, so that the disk is not found full half way."""
        with self.partial(key).open("xb") as file:
            if size_bytes:
                os.posix_fallocate(file.fileno(), 0, size_bytes)

    def _cached(self) -> list[Cached]:
        found = list[Cached]()
        for path in self._bundles.iterdir():
            sizes = {key_of(file): file.size_bytes for file in self._files_of(path.name)}
            if sizes:
                found.append(Cached(path.name, path.stat().st_mtime, sizes))
        return found

    def _files_of(self, hex_digits: str) -> Sequence[BundledFile]:
        sealed = self.sealed(hex_digits)
        try:
            return BundleContents.FromString(sealed.contents).files if sealed else ()
        except DecodeError:
            return ()

    # --- files

    def file(self, key: str) -> Path:
        """Where a whole file lies."""
        return self._files / key

    def partial(self, key: str) -> Path:
        """Where a file lies until it is whole."""
        return self._partial / key

    def whole(self) -> dict[bytes, tuple[Path, Piece]]:
        """Where each chunk of the whole files here can be read, by its SHA-256."""
        found = dict[bytes, tuple[Path, Piece]]()
        for path in self._bundles.iterdir():
            for file in self._files_of(path.name):
                whole = self.file(key_of(file))
                if whole.exists():
                    found.update((piece.sha256, (whole, piece)) for piece in pieces_of(file))
        return found

    def reopen(self, key: str) -> None:
        """A whole file was found damaged: keep what is good of it, in a file of its own."""
        with _own_terms(self.root):
            shutil.copyfile(self.file(key), self.partial(key))
            self.file(key).unlink()

    def finish(self, key: str, size_bytes: int) -> None:
        """A file is whole."""
        with _own_terms(self.root):
            path = self.partial(key)
            with path.open("r+b") as file:
                file.truncate(size_bytes)
                os.fsync(file.fileno())
            path.replace(self.file(key)).chmod(0o444)


def damaged(path: Path, pieces: list[Piece]) -> list[Piece]:
    """Those pieces that do not lie in the file as they should."""
    try:
        with path.open("rb") as file:
            return [piece for piece in pieces if read_piece(file.fileno(), piece) is None]
    except OSError:
        return pieces


def read_piece(descriptor: int, piece: Piece) -> bytes | None:
    """The piece at its place; None when something else stands there, or it cannot be read."""
    try:
        content = os.pread(descriptor, piece.size_bytes, piece.offset)
    except OSError:
        return None
    if len(content) != piece.size_bytes:
        return None
    return content if hashlib.sha256(content).digest() == piece.sha256 else None


def write_piece(path: Path, piece: Piece, content: bytes) -> None:
    """Put it where it belongs."""
    with _own_terms(path), path.open("r+b") as file:
        file.seek(piece.offset)
        file.write(content)


@contextlib.contextmanager
def _own_terms(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Unavailable(
            f"the bundle cache was deleted while it was used: {error.filename}", _RETRY_AFTER_S
        ) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Unavailable(f"the disk is full: {path}", _RETRY_AFTER_S) from error
        raise Unavailable(f"the disk fails: {error}", _RETRY_AFTER_S) from error


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.0f} MiB"
