"""Buckets that gateways watch, kept equal to the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from typing import NamedTuple, Protocol

import structlog
from busbar_errors import Unavailable
from busbar_messaging.background import rest_s, together
from busbar_messaging.bucket_changes import Current, Deleted, Put
from busbar_messaging.watching import follow
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from busbar_billing.adapters import metrics

log = structlog.get_logger()

RECONCILE_INTERVAL = timedelta(seconds=30)
MARKER_KEPT = timedelta(hours=1)
"""How long the mark of a deletion stays: whoever watches has seen it by then, or reads the whole
bucket anew. For ever, a tenant that makes and revokes keys would fill the bucket."""
_WIPE_LOOK_INTERVAL_S = 3.0
_ASKED_FOR = 16
"""Names of which a look asks whether they are there: one may just have been deleted."""
_REFRESH_TIMEOUT_S = 2.0
_WRITE_TIMEOUT_S = 2.0
_RETRY_PAUSE_S = 0.5
_SETTLED_AT_ONCE = 64
"""Names put right at once under one hold of the lock; a change by somebody waits for no more."""
_BUS_AWAY = (NatsError, JetStreamError, TimeoutError, OSError)


class Truth(Protocol):
    """What the database says."""

    async def entries(self, names: Collection[str]) -> Mapping[str, bytes]:
        """What these names should hold; one that should not be there is left out."""
        ...

    def pages(self) -> AsyncIterator[Mapping[str, bytes]]:
        """All that should be there, part by part."""
        ...


class _Held(NamedTuple):
    value: bytes
    revision: int


class MirroredBucket:
    """One bucket. Whatever is written is read from the database first, under one lock, so that no
    writer undoes what another has just changed."""

    def __init__(self, client: Client, bucket: str, truth: Truth, wanted: asyncio.Event) -> None:
        self._client = client
        self._name = bucket
        self._truth = truth
        self._mirror: dict[str, _Held] = {}
        self._writing = asyncio.Lock()
        self._wanted = wanted
        self.complete = False
        """Whether the whole bucket was read once."""

    def holds(self, name: str) -> bool:
        """Whether the name was in the bucket when it was last heard of."""
        return name in self._mirror

    async def refresh(self, names: Collection[str]) -> bool:
        """Write what the database says of these names now; False when the bus or the database is
        away: then it is done when it is back."""
        try:
            async with asyncio.timeout(_REFRESH_TIMEOUT_S):
                for part in _parts(names, _SETTLED_AT_ONCE):
                    await self._settle(part, all_of_them=True)
        except (*_BUS_AWAY, Unavailable) as error:
            log.warning("not propagated yet", bucket=self._name, error=repr(error))
            self._wanted.set()
            return False
        return True

    async def watch(self) -> None:
        """Keep the mirror equal to the bucket, for ever."""
        async for change in follow(self._client, self._name):
            match change:
                case Put(key, value, revision):
                    self._mirror[key] = _Held(value, revision)
                case Deleted(key):
                    self._mirror.pop(key, None)
                case Current():
                    self.complete = True
                    self._wanted.set()

    async def notice_wipes(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            await asyncio.sleep(rest_s(_WIPE_LOOK_INTERVAL_S))
            # A bucket that went with the bus is read anew when it is back.
            with contextlib.suppress(*_BUS_AWAY):
                await self.look_for_wipe()

    async def look_for_wipe(self) -> bool:
        """A purge is not reported to watchers, but then the bucket begins behind what was heard of,
        and that is not there. Where it is there, another instance is writing it anew, and what it
        wrote is on its way: to call that a wipe, both would do so in turns."""
        async with self._writing:
            bucket = await self._bucket()
            begins = (await bucket.status()).stream_info.state.first_seq
            behind = (name for name, held in self._mirror.items() if held.revision < begins)
            asked = list(islice(behind, _ASKED_FOR))
            if not asked or any(await asyncio.gather(*(_is_in(bucket, name) for name in asked))):
                return False
            self._mirror.clear()
        log.warning("bucket was wiped", bucket=self._name)
        self._wanted.set()
        return True

    async def reconcile(self) -> int:
        """Put right whatever differs from the database; returns how much did. Raises Unavailable
        and what the bus raises."""
        changed, listed = 0, set[str]()
        async for page in self._truth.pages():
            listed |= page.keys()
            differing = [name for name, value in page.items() if self._value(name) != value]
            changed += await self._settle_all(differing)
        return changed + await self._settle_all(self._mirror.keys() - listed)

    async def _settle_all(self, names: Collection[str]) -> int:
        return sum([await self._settle(part) for part in _parts(names, _SETTLED_AT_ONCE)])

    async def _settle(self, names: Sequence[str], *, all_of_them: bool = False) -> int:
        async with self._writing:
            wanted = await self._truth.entries(names)
            if not all_of_them:
                names = [name for name in names if self._value(name) != wanted.get(name)]
            bucket = await self._bucket()
            await asyncio.gather(*(self._write(bucket, one, wanted.get(one)) for one in names))
        return len(names)

    async def _write(self, bucket: KeyValue, name: str, value: bytes | None) -> None:
        if value is None:
            await bucket.purge(name, msg_ttl=MARKER_KEPT.total_seconds())
            self._mirror.pop(name, None)
        else:
            self._mirror[name] = _Held(value, await bucket.put(name, value))
        change = "deleted" if value is None else "put"
        metrics.BUCKET_WRITES.labels(self._name, change).inc()

    def _value(self, name: str) -> bytes | None:
        held = self._mirror.get(name)
        return held.value if held else None

    async def _bucket(self) -> KeyValue:
        return await self._client.jetstream(timeout=_WRITE_TIMEOUT_S).key_value(self._name)


async def keep_equal(buckets: Sequence[MirroredBucket], wanted: asyncio.Event) -> None:
    """Keep all of them equal to the database, for ever: at start, whenever one was read anew (a
    reconnect, a restart, a re-creation) and every 30 s, always in this order."""
    await together(
        *(bucket.watch() for bucket in buckets),
        *(bucket.notice_wipes() for bucket in buckets),
        _reconcile_when_wanted(buckets, wanted),
    )


async def _reconcile_when_wanted(buckets: Sequence[MirroredBucket], wanted: asyncio.Event) -> None:
    second_look = False
    while True:
        if not second_look:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wanted.wait(), RECONCILE_INTERVAL.total_seconds())
        wanted.clear()
        if not all(bucket.complete for bucket in buckets):
            continue
        try:
            changed = sum([await bucket.reconcile() for bucket in buckets])
        except (*_BUS_AWAY, Unavailable) as error:
            log.warning("buckets not reconciled", error=repr(error))
            await asyncio.sleep(_RETRY_PAUSE_S)
            wanted.set()
            continue
        # What another instance of billing wrote meanwhile is seen by looking once more.
        second_look = changed > 0 and not second_look


async def _is_in(bucket: KeyValue, name: str) -> bool:
    try:
        await bucket.get(name)
    except KeyNotFoundError:
        return False
    return True


def _parts(names: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(list(names))
    while part := list(islice(rest, size)):
        yield part
