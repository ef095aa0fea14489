"""Model bundles: from the object store through a verified cache into Triton's repository."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tarfile
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import structlog
from busbar_errors import NotFound, Unavailable
from busbar_messaging.topology import MODELS
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError, ObjectNotFoundError

from busbar_node_agent.adapters.manifest import read_manifest
from busbar_node_agent.adapters.warm_up import warm_up
from busbar_node_agent.domain.bundle import (
    BundleRefused,
    Member,
    check_members,
    checked_path,
    digest_hex,
    named_config,
)
from busbar_node_agent.usecases.replica import Bundle

log = structlog.get_logger()

STALL_TIMEOUT_S = 20.0
_FREE_BYTES_MIN = 256 * 1024 * 1024


@dataclass(slots=True)
class BundleCache:
    """Bundles on disk by digest, fetched when they are asked for."""

    client: Client
    root: Path
    bundle_bytes_max: int
    domain: str = ""
    """Where the object store is; "" is the nearest JetStream."""
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict[str, asyncio.Lock])

    async def fetch(self, digest: str) -> Bundle:
        """The verified bundle. Raises BundleRefused, NotFound or Unavailable."""
        hex_digits = digest_hex(digest)
        async with self._locks.setdefault(hex_digits, asyncio.Lock()):
            target = self.root / hex_digits
            if not target.is_dir():
                await self._fetch(hex_digits, target)
            manifest = await asyncio.to_thread(read_manifest, target / "busbar.yaml")

        async def warm(triton: Any, model: str) -> None:
            await warm_up(triton, model, manifest)

        return Bundle(digest, target, warm)

    async def keep_only(self, digests: set[str]) -> None:
        """Delete the bundles that are not among these."""
        kept = {digest.removeprefix("sha256:") for digest in digests}
        await asyncio.to_thread(_delete_others, self.root, kept)

    async def _fetch(self, hex_digits: str, target: Path) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        archive = self.root / f"{hex_digits}.tar.partial"
        try:
            with archive.open("w+b") as file:
                await self._download(hex_digits, file)
                file.seek(0)
                await asyncio.to_thread(_extract, file, target, self.bundle_bytes_max)
        except tarfile.TarError as error:
            raise BundleRefused(f"not a tar archive: {error}") from error
        finally:
            archive.unlink(missing_ok=True)

    async def _download(self, hex_digits: str, file: IO[bytes]) -> None:
        sink = _VerifyingSink(file, self.bundle_bytes_max)
        try:
            jetstream = self.client.jetstream(timeout=5, domain=self.domain or None)
            store = await jetstream.object_store(MODELS.name)
            size_bytes = (await store.get_info(hex_digits)).size or 0
            self._check_room(size_bytes)
            await _until_stalled(store.get(hex_digits, writeinto=cast("Any", sink)), sink)
        except (ObjectNotFoundError, NotFoundError) as error:
            raise NotFound(f"bundle sha256:{hex_digits} is not in the object store") from error
        except (NatsError, JetStreamError, TimeoutError) as error:
            raise Unavailable(f"bundle not fetched: {error!r}") from error
        if sink.refused:
            raise BundleRefused(sink.refused)
        if sink.sha256.hexdigest() != hex_digits:
            raise BundleRefused(f"what was stored under sha256:{hex_digits} has another digest")

    def _check_room(self, size_bytes: int) -> None:
        if size_bytes > self.bundle_bytes_max:
            raise BundleRefused(
                f"{size_bytes} bytes, more than the {self.bundle_bytes_max} allowed"
            )
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < 2 * size_bytes + _FREE_BYTES_MIN:
            raise Unavailable(f"only {free_bytes} bytes free in {self.root} for a bundle")


def _delete_others(root: Path, kept: set[str]) -> None:
    for entry in root.iterdir() if root.is_dir() else ():
        if entry.name.partition(".")[0] in kept:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


class _VerifyingSink:
    """Writes to a file while hashing; stops writing, not reading, when there is too much."""

    def __init__(self, file: IO[bytes], bytes_max: int) -> None:
        self.sha256 = hashlib.sha256()
        self.written_bytes = 0
        self.refused = ""
        self._file = file
        self._bytes_max = bytes_max

    def write(self, data: bytes) -> int:
        self.written_bytes += len(data)
        if self.written_bytes > self._bytes_max:
            self.refused = f"more than the {self._bytes_max} bytes allowed"
            return len(data)
        self.sha256.update(data)
        return self._file.write(data)


async def _until_stalled(getting: Awaitable[Any], sink: _VerifyingSink) -> None:
    """Await the download; raises TimeoutError when nothing arrives for a while."""
    task = asyncio.ensure_future(getting)
    try:
        while not task.done():
            before = sink.written_bytes
            await asyncio.wait([task], timeout=STALL_TIMEOUT_S)
            if not task.done() and sink.written_bytes == before:
                raise TimeoutError(f"no data for {STALL_TIMEOUT_S:.0f} s")
        await task
    finally:
        task.cancel()


def _extract(file: IO[bytes], target: Path, bytes_max: int) -> None:
    """Extract into `target`, which appears complete or not at all."""
    partial_target = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial_target, ignore_errors=True)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members = archive.getmembers()
        check_members(
            (Member(each.name, each.size, each.isreg(), each.isdir()) for each in members),
            bytes_max=bytes_max,
        )
        partial_target.mkdir(parents=True)
        for member in members:
            _extract_member(archive, member, partial_target)
    read_manifest(partial_target / "busbar.yaml")
    partial_target.rename(target)


def _extract_member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    path = root / checked_path(member.name)
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None, "a regular file has contents"
    with source, path.open("xb") as out:
        shutil.copyfileobj(source, out, 1024 * 1024)
    path.chmod(0o444)


@dataclass(frozen=True, slots=True)
class ModelRepository:
    """The directory that Triton loads from: one directory per deployment."""

    root: Path

    async def stage(self, deployment: str, bundle: Bundle) -> None:
        """Make the repository hold the bundle under the deployment's name."""
        await asyncio.to_thread(self._stage, deployment, bundle.path)

    async def unstage(self, deployment: str) -> None:
        """Remove the deployment's directory."""
        await asyncio.to_thread(shutil.rmtree, self.root / deployment, ignore_errors=True)

    def clear(self) -> None:
        """Remove everything; nothing in it outlives the agent."""
        self.root.mkdir(parents=True, exist_ok=True)
        for entry in self.root.iterdir():
            shutil.rmtree(entry, ignore_errors=True)

    def _stage(self, deployment: str, source: Path) -> None:
        target = self.root / deployment
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=_link_or_copy)
        config = target / "config.pbtxt"
        text = config.read_text()
        config.unlink()  # it may be a link into the cache
        config.write_text(named_config(text, deployment))


def _link_or_copy(source: str, target: str) -> str:
    """A hard link costs no space; over file systems' borders it has to be a copy."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        shutil.copyfile(source, target)
    return target
