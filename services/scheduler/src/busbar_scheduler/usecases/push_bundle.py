"""Taking a bundle in: checked whole before anybody can deploy it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from busbar_contracts.scheduler.v1.bundle_pb2 import BundleContents, BundleSeal, SealedBundle
from busbar_errors import Conflict, NotFound, Rejected, Unavailable
from busbar_messaging.bundles.contents import digest_of, read_contents, size_of
from busbar_messaging.bundles.sealing import TrustedKeys

from busbar_scheduler.domain.fleet import Bundle
from busbar_scheduler.domain.manifest import Manifest
from busbar_scheduler.usecases.ports import Declarations, ModelStore

PUSH_S_MAX = 300
"""From finding all chunks there to noting the bundle; condemned ones stay longer than that."""
_LOOKUPS_AT_ONCE = 16


class Inspection(Protocol):
    """What a bundle turned out to be."""

    @property
    def manifest(self) -> Manifest:
        """What its busbar.yaml says."""
        ...

    @property
    def code(self) -> str:
        """Why it needs an operator's approval; empty when it is data alone."""
        ...


Inspect = Callable[[BundleContents], Awaitable[Inspection]]


@dataclass(frozen=True, slots=True)
class Intake:
    """Takes bundles in: whose seals count, how large they may be, where they go."""

    trusted: TrustedKeys
    bundle_bytes_max: int
    inspect: Inspect
    store: ModelStore
    declarations: Declarations

    async def push(self, sealed: SealedBundle, now_unix_ms: int) -> tuple[Bundle, bool]:
        """The bundle, and whether it is new.

        Raises Rejected for a bad one, Conflict while chunks of it are missing, and Unavailable.
        """
        try:
            async with asyncio.timeout(PUSH_S_MAX):
                return await self._push(sealed, now_unix_ms)
        except TimeoutError as error:
            raise Unavailable(f"took longer than {PUSH_S_MAX} s; push it again") from error

    async def _push(self, sealed: SealedBundle, now_unix_ms: int) -> tuple[Bundle, bool]:
        digest = digest_of(sealed.contents)
        approved = self.trusted.opened(sealed, digest)
        contents = read_contents(sealed.contents, self.bundle_bytes_max)
        chunks = {chunk.sha256 for file in contents.files for chunk in file.chunks}
        sizes = await _sizes(self.store, chunks)
        if lacking := sum(size_bytes is None for size_bytes in sizes.values()):
            raise Conflict(f"{lacking} of {len(chunks)} chunks are missing; push it again")
        if reason := _mislisted(contents, sizes):
            raise Rejected(reason)
        inspected = await self.inspect(contents)
        if inspected.code and not approved:
            raise Rejected(f"{inspected.code}; an operator must approve it: push it with --approve")
        await _vouch(self.store, digest, sealed)
        known = next((one for one in self.declarations.bundles() if one.digest == digest), None)
        if known:
            return known, False
        bundle = Bundle(digest, size_of(contents), inspected.manifest, now_unix_ms)
        await self.declarations.put_bundle(bundle)
        return bundle, True


async def missing(store: ModelStore, chunks: Iterable[bytes]) -> list[bytes]:
    """Those chunks that the store lacks, in the order given."""
    sizes = await _sizes(store, chunks)
    return [sha256 for sha256, size_bytes in sizes.items() if size_bytes is None]


async def _sizes(store: ModelStore, chunks: Iterable[bytes]) -> dict[bytes, int | None]:
    """Each chunk's size in the store, None where that lacks it, in the order given."""
    turn = asyncio.Semaphore(_LOOKUPS_AT_ONCE)

    async def size_of_one(sha256: bytes) -> int | None:
        async with turn:
            return await store.chunk_bytes(sha256)

    wanted = list(dict.fromkeys(chunks))
    return dict(zip(wanted, await asyncio.gather(*map(size_of_one, wanted)), strict=True))


def _mislisted(contents: BundleContents, sizes: Mapping[bytes, int | None]) -> str:
    """The first chunk that is listed with another size than it has; empty when none is.

    A digest says nothing of where a chunk ends in its file: the sizes listed do.
    """
    for file in contents.files:
        for chunk in file.chunks:
            if chunk.size_bytes != sizes[chunk.sha256]:
                return (
                    f"{file.path}: the bundle lists {chunk.size_bytes} bytes for chunk "
                    f"{chunk.sha256.hex()}, which has {sizes[chunk.sha256]} in the store; "
                    "push it with --again if that is damaged"
                )
    return ""


async def _vouch(store: ModelStore, digest: str, sealed: SealedBundle) -> None:
    """Store the seals beside those that are there; a newer one of the same key replaces it.

    Contents that were damaged in the store are replaced.
    """
    try:
        there = await store.bundle(digest)
    except (NotFound, Rejected):
        there = SealedBundle()
    seals = {_whose(seal): seal for seal in (*there.seals, *sealed.seals)}
    stored_alike = list(seals.values()) == list(there.seals) and there.contents == sealed.contents
    if not stored_alike or not await store.holds_bundle(digest):
        await store.put_bundle(digest, SealedBundle(contents=sealed.contents, seals=seals.values()))


def _whose(seal: BundleSeal) -> tuple[bytes, bool]:
    return seal.public_key, seal.approves_code
