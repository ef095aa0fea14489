"""Model bundles made in memory, sealed as a test wants them, and pushed or simply put there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from busbar_contracts.scheduler.v1.bundle_pb2 import (
    BundleChunk,
    BundleContents,
    BundledFile,
    SealedBundle,
)
from busbar_messaging.bundles.contents import digest_of
from busbar_messaging.bundles.sealing import SigningKey
from busbar_messaging.bundles.store import BundleStore

KEY = SigningKey.make()
"""An approver's, in tests that name none."""
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Made:
    """A bundle and the chunks it consists of."""

    contents: bytes
    chunks: Mapping[bytes, bytes]
    key: SigningKey = KEY
    approves_code: bool = True

    @property
    def digest(self) -> str:
        return digest_of(self.contents)

    @property
    def sealed(self) -> SealedBundle:
        seal = self.key.seal(self.contents, approves_code=self.approves_code)
        return SealedBundle(contents=self.contents, seals=[seal])

    def sealed_by(self, key: SigningKey, *, approves_code: bool = True) -> Made:
        return replace(self, key=key, approves_code=approves_code)

    def listing(self, path: str, sizes: Mapping[int, int]) -> Made:
        """The same chunks under a list that gives some of a file's, by number, other sizes."""
        contents = BundleContents.FromString(self.contents)
        file = next(one for one in contents.files if one.path == path)
        for at, size_bytes in sizes.items():
            file.chunks[at].size_bytes = size_bytes
        file.size_bytes = sum(one.size_bytes for one in file.chunks)
        return replace(self, contents=contents.SerializeToString(deterministic=True))

    @property
    def body(self) -> dict[str, Any]:
        """What the admin API takes."""
        [seal] = self.sealed.seals
        return {
            "contents": base64.b64encode(self.contents).decode(),
            "seal": {
                "public_key": seal.public_key.hex(),
                "signature": seal.signature.hex(),
                "approves_code": seal.approves_code,
            },
        }

    async def put(self, store: BundleStore) -> str:
        """Write it past the scheduler; its digest."""
        for sha256, content in self.chunks.items():
            await store.put_chunk(sha256, content)
        await store.put_bundle(self.digest, self.sealed)
        return self.digest


def make(files: Mapping[str, bytes], *, chunk_bytes: int = CHUNK_BYTES) -> Made:
    """A bundle of these files, named by its busbar.yaml where that can be read."""
    chunks, listed = dict[bytes, bytes](), list[BundledFile]()
    for path, content in sorted(files.items()):
        pieces = [content[at : at + chunk_bytes] for at in range(0, len(content), chunk_bytes)]
        found = {hashlib.sha256(piece).digest(): piece for piece in pieces}
        chunks.update(found)
        of_file = [
            BundleChunk(sha256=hashlib.sha256(piece).digest(), size_bytes=len(piece))
            for piece in pieces
        ]
        listed.append(BundledFile(path=path, size_bytes=len(content), chunks=of_file))
    name, version = _said(files.get("busbar.yaml", b""))
    contents = BundleContents(name=name, version=version, files=listed)
    return Made(contents.SerializeToString(deterministic=True), chunks)


def files_of(directory: Path) -> dict[str, bytes]:
    """The files of a model directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _said(manifest: bytes) -> tuple[str, str]:
    try:
        said = yaml.safe_load(manifest)
        return str(said["name"]), str(said["version"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return "unnamed", "1"
