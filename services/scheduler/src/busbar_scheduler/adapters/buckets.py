"""Compare-and-set on key-value buckets, with failures in our own terms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from busbar_errors import Conflict, Unavailable
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

_WRONG_LAST_SEQUENCE = {10071, 10164}
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as the server has it."""

    value: bytes
    revision: int


class Buckets:
    """Opens buckets lazily and again after they were made anew."""

    def __init__(self, client: Client) -> None:
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)
        self._open: dict[str, KeyValue] = {}

    async def put_if(self, bucket: str, key: str, value: bytes, revision: int) -> int:
        """Write when the entry's revision is `revision` (0: when there is none); its new revision.

        Raises Conflict when it is not, Unavailable when the bus does not answer; the write
        may or may not have happened then.
        """
        with _own_terms(bucket, key):
            store = await self._store(bucket)
            if revision:
                return await store.update(key, value, last=revision)
            return await store.create(key, value)

    async def delete_if(self, bucket: str, key: str, revision: int) -> None:
        """Delete when the entry's revision is `revision`; raises as `put_if` does."""
        if revision <= 0:
            return  # the server would take 0 for "whatever is there"
        with _own_terms(bucket, key):
            await (await self._store(bucket)).delete(key, last=revision)

    async def delete(self, bucket: str, key: str) -> None:
        """Delete whatever is there; raises Unavailable."""
        with _own_terms(bucket, key):
            await (await self._store(bucket)).delete(key)

    async def put(self, bucket: str, key: str, value: bytes) -> int:
        """Write whatever is there; the entry's new revision. Raises Unavailable."""
        with _own_terms(bucket, key):
            return await (await self._store(bucket)).put(key, value)

    async def get(self, bucket: str, key: str) -> Entry | None:
        """The entry as the server has it; None when there is none."""
        with _own_terms(bucket, key):
            try:
                entry = await (await self._store(bucket)).get(key)
            except KeyNotFoundError:
                return None
            return Entry(entry.value or b"", entry.revision or 0)

    async def _store(self, bucket: str) -> KeyValue:
        if bucket not in self._open:
            self._open[bucket] = await self._jetstream.key_value(bucket)
        return self._open[bucket]


@contextlib.contextmanager
def _own_terms(bucket: str, key: str) -> Iterator[None]:
    try:
        yield
    except KeyWrongLastSequenceError as error:
        raise Conflict(f"{bucket}/{key} was changed by somebody else") from error
    except (NatsError, JetStreamError, TimeoutError, OSError) as error:
        if isinstance(error, APIError) and error.err_code in _WRONG_LAST_SEQUENCE:
            raise Conflict(f"{bucket}/{key} was changed by somebody else") from error
        raise Unavailable(f"{bucket}/{key}: the bus did not answer: {error!r}") from error
