"""Taking a bundle in: checked whole before anybody can deploy it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
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
        if lacking := await missing(self.store, chunks):
            raise Conflict(f"{len(lacking)} of {len(chunks)} chunks are missing; push it again")
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
    turn = asyncio.Semaphore(_LOOKUPS_AT_ONCE)

    async def lacks(sha256: bytes) -> bool:
        async with turn:
            return not await store.holds_chunk(sha256)

    wanted = list(dict.fromkeys(chunks))
    lacking = await asyncio.gather(*map(lacks, wanted))
    return [sha256 for sha256, is_lacking in zip(wanted, lacking, strict=True) if is_lacking]


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
