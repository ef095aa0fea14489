"""Bundles and their chunks in the object store `models`."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from busbar_contracts.scheduler.v1.bundle_pb2 import SealedBundle
from busbar_errors import NotFound, Rejected, Unavailable
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import ObjectInfo, ObjectMeta, ObjectMetaOptions
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError
from nats.js.object_store import ObjectStore

from busbar_messaging.bundles.contents import CHUNK_BYTES_MAX, bundle_object, chunk_object
from busbar_messaging.topology import MODELS

_TIMEOUT_S = 10.0
_SEALED_BYTES_MAX = 1024 * 1024


CONDEMNED = "Busbar-Condemned"
"""A header of objects that nothing uses. They are read as before, and deleted some time later
unless somebody stores them again or turns out to use them."""


def is_condemned(info: ObjectInfo) -> bool:
    """Whether an object is to be deleted."""
    return CONDEMNED in (info.headers or {})


class BundleStore:
    """What is written is one message an object, so that reading takes two requests."""

    def __init__(self, client: Client, domain: str = "") -> None:
        """`domain` says where the object store is; "" is the nearest JetStream."""
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S, domain=domain or None)
        self._stream = f"OBJ_{MODELS.name}"
        self._objects = ObjectStore(MODELS.name, self._stream, self._jetstream)

    async def chunk_bytes(self, sha256: bytes) -> int | None:
        """The chunk's size; None when it is not there, or condemned."""
        info = await self._staying(chunk_object(sha256))
        return None if info is None else info.size or 0

    async def holds_bundle(self, digest: str) -> bool:
        """Whether a bundle's contents and seals are there, and not condemned."""
        return await self._staying(bundle_object(digest)) is not None

    async def put_chunk(self, sha256: bytes, content: bytes) -> None:
        """Store a chunk; raises Rejected when it is another, Unavailable without room."""
        if hashlib.sha256(content).digest() != sha256:
            raise Rejected(f"these {len(content)} bytes do not have the digest {sha256.hex()}")
        await self._put(chunk_object(sha256), content)

    async def chunk(self, sha256: bytes) -> bytes:
        """A chunk, checked; raises NotFound, Unavailable, or Rejected when it was tampered with."""
        content = await self._get(chunk_object(sha256), CHUNK_BYTES_MAX)
        if hashlib.sha256(content).digest() != sha256:
            raise Rejected(f"what is stored as chunk {sha256.hex()} has another digest")
        return content

    async def put_bundle(self, digest: str, sealed: SealedBundle) -> None:
        """Store a bundle's contents and seals."""
        await self._put(bundle_object(digest), sealed.SerializeToString(deterministic=True))

    async def bundle(self, digest: str) -> SealedBundle:
        """A bundle's contents and seals as they are stored, for the reader to check."""
        stored = await self._get(bundle_object(digest), _SEALED_BYTES_MAX)
        try:
            return SealedBundle.FromString(stored)
        except DecodeError as error:
            raise Rejected(f"what is stored as {digest} is not a bundle: {error}") from error

    async def _staying(self, name: str) -> ObjectInfo | None:
        with _own_terms(name):
            try:
                info = await self._objects.get_info(name)
            except NotFoundError:
                return None
            return None if is_condemned(info) else info

    async def _put(self, name: str, content: bytes) -> None:
        options = ObjectMetaOptions(max_chunk_size=CHUNK_BYTES_MAX)
        with _own_terms(name):
            await self._objects.put(name, content, ObjectMeta(name=name, options=options))

    async def _get(self, name: str, bytes_max: int) -> bytes:
        with _own_terms(name):
            try:
                info = await self._objects.get_info(name)
            except NotFoundError as error:
                raise NotFound(f"{name} is not in the model store") from error
            if (info.size or 0) > bytes_max or (info.chunks or 0) > 1:
                raise Rejected(f"{name} is larger than anything of its kind")
            if not info.size:
                return b""
            subject = f"$O.{MODELS.name}.C.{info.nuid}"
            try:
                # Not a direct get: those find no answer from another region's site.
                found = await self._jetstream.get_last_msg(self._stream, subject)
            except NotFoundError as error:
                raise Unavailable(f"{name} is being replaced in the model store") from error
            return found.data or b""


@contextlib.contextmanager
def _own_terms(name: str) -> Iterator[None]:
    try:
        yield
    except (NatsError, JetStreamError, TimeoutError) as error:
        raise Unavailable(f"the model store did not serve {name}: {error!r}", 5.0) from error
