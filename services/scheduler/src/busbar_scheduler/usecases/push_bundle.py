"""Taking a bundle in: checked whole before any of it becomes visible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from busbar_scheduler.domain.fleet import Bundle
from busbar_scheduler.domain.manifest import Manifest
from busbar_scheduler.usecases.ports import Declarations, ModelStore

Read = Callable[[Path], Awaitable[Manifest]]


@dataclass(frozen=True, slots=True)
class Upload:
    """A bundle as it arrived."""

    archive: Path
    digest: str
    size_bytes: int


async def push(
    upload: Upload, read: Read, store: ModelStore, declarations: Declarations, now_unix_ms: int
) -> tuple[Bundle, bool]:
    """The bundle, and whether it is new. Raises Rejected for a bad one."""
    manifest = await read(upload.archive)
    new = not await store.holds(upload.digest, upload.size_bytes)
    if new:
        await store.put(upload.digest, upload.archive)
    bundle = Bundle(upload.digest, upload.size_bytes, manifest, now_unix_ms)
    await declarations.put_bundle(bundle)
    return bundle, new
