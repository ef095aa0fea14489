"""Bundles in the object store `models`, named by the hex digits of their digest."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

from busbar_errors import Rejected, Unavailable
from busbar_messaging import topology
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

_TIMEOUT_S = 10.0


class ModelStore:
    """The object store, in our terms."""

    def __init__(self, client: Client) -> None:
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)

    async def holds(self, digest: str, size_bytes: int) -> bool:
        """Whether the whole bundle is there."""
        with _own_terms():
            store = await self._jetstream.object_store(topology.MODELS.name)
            try:
                info = await store.get_info(_name(digest))
            except NotFoundError:
                return False
            return info.size == size_bytes and info.digest == _object_digest(digest)

    async def put(self, digest: str, archive: Path) -> None:
        """Store it; raises Rejected when it changed meanwhile, Unavailable without room."""
        with _own_terms(), archive.open("rb") as file:
            store = await self._jetstream.object_store(topology.MODELS.name)
            info = await store.put(_name(digest), file)
            if info.digest != _object_digest(digest):
                await store.delete(_name(digest))
                raise Rejected(f"{digest} changed while it was being stored; push it again")


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _object_digest(digest: str) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(_name(digest))).decode()


@contextlib.contextmanager
def _own_terms() -> Iterator[None]:
    try:
        yield
    except (NatsError, JetStreamError, TimeoutError) as error:
        raise Unavailable(f"the model store did not take it: {error!r}", 5.0) from error
