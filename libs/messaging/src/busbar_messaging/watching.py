"""Following a key-value bucket through reconnects, restarts and re-creations.

A plain watch dies silently when the server loses its ephemeral consumer. This
one notices, watches anew, and reports what vanished meanwhile as deletions, so
that whoever keeps a table from it stays right.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

log = structlog.get_logger()

_POLL_S = 1.0
_VERIFY_EVERY_POLLS = 15
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Put:
    """`key` now has `value`, written as `revision`."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """`key` is gone: deleted, purged, or missing after the bucket was re-read."""

    key: str


@dataclass(frozen=True, slots=True)
class Current:
    """Everything that was in the bucket when the watch began has been reported."""


Change = Put | Deleted | Current


async def follow(client: Client, bucket: str) -> AsyncGenerator[Change]:
    """Report the whole bucket, then `Current`, then every change, for ever.

    After an interruption the whole bucket is reported again, deletions first
    inferred from what is missing, then `Current` once more. Entries that expire
    by TTL are not reported: keep the time of each Put where that matters.
    """
    known: set[str] = set()
    while True:
        try:
            async for change in _one_watch(client, bucket, known):
                yield change
        except (NatsError, JetStreamError, TimeoutError, OSError) as error:
            _obey_cancellation()
            log.warning("bucket watch interrupted", bucket=bucket, error=repr(error))
        await asyncio.sleep(_RETRY_S)


async def _one_watch(client: Client, bucket: str, known: set[str]) -> AsyncGenerator[Change]:
    store = await client.jetstream(timeout=2).key_value(bucket)
    watcher: Any = await store.watchall()  # nats-py's annotations of it are wrong
    try:
        reconnects, polls, fresh = client.stats["reconnects"], 0, set[str]()
        reading_all = True
        while client.stats["reconnects"] == reconnects:
            try:
                # On the beat: all watches of a process that is idle wake it up once.
                rest_s = _POLL_S - asyncio.get_running_loop().time() % _POLL_S
                entry = await watcher.updates(timeout=rest_s)
            except (NatsError, TimeoutError):
                _obey_cancellation()
                polls += 1
                if polls % _VERIFY_EVERY_POLLS == 0 and not await _alive(watcher):
                    return
                continue
            if entry is not None:
                yield _record(entry, known, fresh)
            elif reading_all:
                reading_all = False
                for key in known - fresh:
                    yield Deleted(key)
                known.intersection_update(fresh)
                yield Current()
    finally:
        with contextlib.suppress(NatsError, JetStreamError, TimeoutError):
            await watcher.stop()


def _obey_cancellation() -> None:
    """Let a cancellation through that Python 3.11's wait_for has turned into a timeout.

    See https://github.com/python/cpython/issues/86296: nats-py waits that way everywhere.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _record(entry: KeyValue.Entry, known: set[str], fresh: set[str]) -> Change:
    if entry.operation in {"DEL", "PURGE"}:
        known.discard(entry.key)
        fresh.discard(entry.key)
        return Deleted(entry.key)
    known.add(entry.key)
    fresh.add(entry.key)
    return Put(entry.key, entry.value or b"", entry.revision or 0)


async def _alive(watcher: Any) -> bool:
    """Whether the server still has the watch's consumer."""
    try:
        await watcher._sub.consumer_info()  # noqa: SLF001
    except (NatsError, JetStreamError, TimeoutError):
        return False
    return True
