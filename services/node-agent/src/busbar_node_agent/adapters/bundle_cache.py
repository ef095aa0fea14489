"""Model bundles, fetched chunk by chunk into a bounded cache and checked whenever they are used."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from busbar_contracts.scheduler.v1.bundle_pb2 import BundledFile, SealedBundle
from busbar_errors import Rejected
from busbar_messaging.bundles.approval import HEAD_BYTES, backend_of, code_in
from busbar_messaging.bundles.configured import loaded_by, misplaced_files
from busbar_messaging.bundles.contents import (
    CONFIG_FILE,
    MANIFEST_FILE,
    hex_of,
    read_contents,
)
from busbar_messaging.bundles.sealing import TrustedKeys
from busbar_messaging.bundles.store import BundleStore
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from busbar_node_agent.adapters.cache_disk import (
    CacheDisk,
    Piece,
    damaged,
    key_of,
    pieces_of,
    read_piece,
    write_piece,
)
from busbar_node_agent.adapters.manifest import read_manifest
from busbar_node_agent.adapters.warm_up import warm_up
from busbar_node_agent.usecases.replica import Bundle

log = structlog.get_logger()

CHUNKS_AT_ONCE = 4

Locks = weakref.WeakValueDictionary[str, asyncio.Lock]


@dataclass(slots=True)
class BundleCache:
    """Bundles on disk, fetched when they are asked for."""

    store: BundleStore
    trusted: TrustedKeys
    disk: CacheDisk
    bundle_bytes_max: int
    _pinned: frozenset[str] = frozenset()
    _in_use: set[str] = field(default_factory=set[str])
    _room: asyncio.Lock = field(default_factory=asyncio.Lock)
    _locks: Locks = field(default_factory=Locks)

    def pin(self, digests: set[str]) -> None:
        """Only other bundles may go to make room; those that were pinned go last."""
        for digest in self._pinned - digests:
            self.disk.touch(digest.removeprefix("sha256:"))
        self._pinned = frozenset(digests)

    async def fetch(self, digest: str) -> Bundle:
        """The bundle, its seals and every byte of it checked.

        Raises Rejected, NotFound, or Unavailable when the store or the disk do not serve.
        """
        hex_digits = hex_of(digest)
        async with self._lock(hex_digits):
            self._in_use.add(digest)
            try:
                return await self._fetch(digest, hex_digits)
            finally:
                self._in_use.discard(digest)

    async def _fetch(self, digest: str, hex_digits: str) -> Bundle:
        sealed = await self._sealed(digest, hex_digits)
        approved = self.trusted.opened(sealed, digest)
        contents = read_contents(sealed.contents, self.bundle_bytes_max)
        await asyncio.to_thread(self.disk.note, hex_digits, sealed)
        async with self._room:
            kept = {hex_of(one) for one in (*self._pinned, *self._in_use)}
            fresh = await asyncio.to_thread(self.disk.reserve, hex_digits, contents, kept)
        for key, file in {key_of(file): file for file in contents.files}.items():
            async with self._lock(key):
                await self._complete(key, file, is_fresh=key in fresh)
        files = {file.path: self.disk.file(key_of(file)) for file in contents.files}
        manifest = await asyncio.to_thread(read_manifest, files[MANIFEST_FILE])
        reason = await asyncio.to_thread(_code_in, files)
        if reason and not approved:
            await self._approved_since(digest, hex_digits, reason)
        self.disk.touch(hex_digits)

        async def warm(triton: Any, model: str) -> None:
            await warm_up(triton, model, manifest)

        every_s = manifest.warmup.every_s
        return Bundle(digest, files, warm, manifest.answers_within_s, every_s)

    async def _sealed(self, digest: str, hex_digits: str) -> SealedBundle:
        """What is noted here when it still counts, else what the store has."""
        noted = await asyncio.to_thread(self.disk.sealed, hex_digits)
        if noted is not None:
            try:
                self.trusted.opened(noted, digest)
            except Rejected as error:
                log.warning("cached bundle does not count", digest=digest, reason=error.reason)
            else:
                return noted
        return await self.store.bundle(digest)

    async def _approved_since(self, digest: str, hex_digits: str, reason: str) -> None:
        """Take over an approval that came after what is noted here; raises Rejected without."""
        sealed = await self.store.bundle(digest)
        if not self.trusted.opened(sealed, digest):
            raise Rejected(f"no operator approved this bundle's code: {reason}")
        await asyncio.to_thread(self.disk.note, hex_digits, sealed)

    async def _complete(self, key: str, file: BundledFile, *, is_fresh: bool) -> None:
        """Have the whole file, and nothing else, under its key."""
        pieces, whole, partial = pieces_of(file), self.disk.file(key), self.disk.partial(key)
        is_whole = whole.exists()
        if is_fresh and not is_whole:
            bad = pieces
        else:
            bad = await asyncio.to_thread(damaged, whole if is_whole else partial, pieces)
        if is_whole and not bad and whole.stat().st_size == file.size_bytes:
            return
        here = await asyncio.to_thread(self.disk.whole) if bad else {}
        # Before the file is touched: other bundles may share it, and the list may be what is wrong.
        first = [(piece, await self._content(piece, here)) for piece in bad[:1]]
        if is_whole:
            log.warning("cached file is damaged", file=file.path, key=key, chunks=len(bad))
            await asyncio.to_thread(self.disk.reopen, key)
        for piece, content in first:
            await asyncio.to_thread(write_piece, partial, piece, content)

        async def fetch_piece(piece: Piece) -> None:
            content = await self._content(piece, here)
            await asyncio.to_thread(write_piece, partial, piece, content)

        await _each(fetch_piece, bad[1:], CHUNKS_AT_ONCE)
        await asyncio.to_thread(self.disk.finish, key, file.size_bytes)

    async def _content(self, piece: Piece, here: dict[bytes, tuple[Path, Piece]]) -> bytes:
        """The chunk, from here or the store; raises Rejected when it has not the size listed."""
        content = await asyncio.to_thread(_read_here, here.get(piece.sha256))
        if content is None:
            content = await self.store.chunk(piece.sha256)
        if len(content) != piece.size_bytes:
            raise Rejected(
                f"the bundle lists {piece.size_bytes} bytes for chunk {piece.sha256.hex()}, "
                f"which has {len(content)}"
            )
        return content

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


def _read_here(place: tuple[Path, Piece] | None) -> bytes | None:
    if place is None:
        return None
    path, piece = place
    try:
        with path.open("rb") as file:
            return read_piece(file.fileno(), piece)
    except OSError:
        return None


async def _each(
    work: Callable[[Piece], Awaitable[None]], pieces: Iterable[Piece], at_once: int
) -> None:
    """Work on all, a few at once; the first failure ends it."""
    waiting = iter(pieces)

    async def worker() -> None:
        for piece in waiting:
            await work(piece)

    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _code_in(files: dict[str, Path]) -> str:
    """Why a bundle needs an operator's approval; empty when it is data alone.

    Raises Rejected for one that no approval allows.
    """
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(files[CONFIG_FILE].read_text(), config)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(f"{CONFIG_FILE} cannot be parsed: {error}") from error
    heads = dict[str, bytes]()
    for name, path in files.items():
        with path.open("rb") as file:
            heads[name] = file.read(HEAD_BYTES)
    if misplaced := misplaced_files(config):
        raise Rejected(f"{CONFIG_FILE}: {misplaced[0]}")
    return code_in(backend_of(config.backend, config.platform), loaded_by(config), heads)
