"""Following a key-value bucket through reconnects, restarts and re-creations.

A plain watch dies silently when the server loses its ephemeral consumer. This
one notices, watches anew, and reports what vanished meanwhile as deletions, so
that whoever keeps a table from it stays right. It makes the consumer itself,
because each watch of nats-py wakes the process up four times a second, for a
flow control that buckets of this size do not need.

In a cluster any server that has a copy may be the one that reports it, and the copy
of a server that was started again lags behind. So a bucket counts as read when as much
was heard as its leader says that there is, and what is older than what was heard before
is no news; see docs/decisions/0077.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from busbar_messaging.bucket_changes import (
    Change,
    Current,
    Deleted,
    Entry,
    Extent,
    Heard,
    Reading,
    unix_ns_of,
)

log = structlog.get_logger()

_LOOK_EVERY_S = 1.0
_HEARTBEAT_S = 2.0
"""A server that dies takes a watch's consumer along; what the bucket then says is missed."""
_SILENCE_MAX_S = 4.5
_RETRY_S = 0.5
_EVERYTHING = ">"
_FLOW = "$JS.FC."
_SIZE = "Nats-Msg-Size"
"""Added by the server where it leaves the value out."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of a bucket without its value."""

    headers: Mapping[str, str]
    size_bytes: int
    """Of the value."""
    stored_unix_ns: int
    """When the server stored it, by its clock."""


@dataclass(frozen=True, slots=True)
class Anew:
    """The bucket was lost and made anew: what was reported of it is not there any more."""


async def follow(
    client: Client, bucket: str, *, keys: str = _EVERYTHING, domain: str = ""
) -> AsyncGenerator[Change]:
    """Report the whole bucket, then `Current`, then every change, for ever.

    `keys` narrows it to what this pattern matches, and then nobody is asked how far the
    bucket reaches: who may see some keys may not ask that. `domain` is where the bucket is.

    After an interruption the whole bucket is reported again, deletions first
    inferred from what is missing, then `Current` once more. Entries that expire
    by TTL are not reported: keep the time of each Put where that matters.
    """
    heard = Heard()
    while True:
        try:
            if client.is_connected:
                async for change in _one_watch(client, bucket, heard, keys, domain):
                    yield change
        except (NatsError, JetStreamError, TimeoutError, OSError) as error:
            _obey_cancellation()
            log.warning("bucket watch interrupted", bucket=bucket, error=repr(error))
        await asyncio.sleep(_RETRY_S)


async def _one_watch(
    client: Client, bucket: str, heard: Heard, keys: str, domain: str
) -> AsyncGenerator[Change]:
    """Ends when a message was missed, nothing is heard any more, the copy that is read lags, or
    after a reconnect.
    """
    extent = await _extent(client, bucket) if keys == _EVERYTHING else None
    if extent is not None and extent.newest < heard.newest:
        heard.begin_anew()
    clock = asyncio.get_running_loop().time
    reading = Reading(extent, clock())
    config = ConsumerConfig(
        filter_subject=f"$KV.{bucket}.{keys}", deliver_policy=DeliverPolicy.LAST_PER_SUBJECT
    )
    async with aclosing(_delivered(client, bucket, config, domain)) as delivered:
        async for message, pending in delivered:
            if message is not None:
                entry = Entry.of(message, bucket)
                reading.take(entry)
                if change := heard.change(entry):
                    yield change
            if pending or reading.over:
                continue
            if reading.is_whole(clock()):
                reading.over = True
                for key in heard.missing(reading.keys):
                    yield Deleted(key)
                yield Current()
            elif reading.is_late(clock()):
                log.warning("copy of a bucket lags", bucket=bucket, read=reading.newest)
                return


async def _extent(client: Client, bucket: str) -> Extent:
    stream = await client.jetstream(timeout=2).stream_info(f"KV_{bucket}")
    state, expires = stream.state, bool(stream.config.max_age)
    return Extent(state.last_seq if state.messages else 0, state.messages, expires)


async def follow_headers(client: Client, bucket: str) -> AsyncGenerator[Stored | Anew]:
    """Report every message of a bucket once without its value: those that are there, then each new
    one, for ever. Remembers no key, so it serves for buckets with more of them than fit in memory.

    Where the bucket was made anew, or put back from a snapshot that lacks what was reported last,
    it says `Anew` and begins at the beginning. That goes unnoticed only where at least as many were
    written since and the one that took the last one's number is gone, too.
    """
    made, last = None, _Place()
    while True:
        try:
            if client.is_connected:
                before, (made, end) = made, await _made_and_end(client, bucket)
                if before not in {None, made} or end < last.sequence:
                    last = _Place()
                    yield Anew()
                async with aclosing(_headers_from(client, bucket, last.sequence)) as delivered:
                    async for message, _pending in delivered:
                        if message is None or (here := _Place.of(message)) == last:
                            continue
                        if here.sequence == last.sequence:  # the snapshot was written to since
                            last = _Place()
                            yield Anew()
                            break
                        last = here
                        yield _stored(message)
        except (NatsError, JetStreamError, TimeoutError, OSError) as error:
            _obey_cancellation()
            log.warning("bucket watch interrupted", bucket=bucket, error=repr(error))
        await asyncio.sleep(_RETRY_S)


@dataclass(frozen=True, slots=True)
class _Place:
    """One message of a stream, told from any other that had its number."""

    sequence: int = 0
    stored_at: datetime | None = None

    @classmethod
    def of(cls, message: Msg) -> _Place:
        metadata = message.metadata
        return cls(metadata.sequence.stream, metadata.timestamp)


async def _made_and_end(client: Client, bucket: str) -> tuple[datetime | None, int]:
    """When the bucket was made, and the number of the last message that was ever in it."""
    stream = await client.jetstream(timeout=2).stream_info(f"KV_{bucket}")
    return stream.created, stream.state.last_seq


def _headers_from(
    client: Client, bucket: str, sequence: int
) -> AsyncGenerator[tuple[Msg | None, int]]:
    config = ConsumerConfig(
        filter_subject=f"$KV.{bucket}.>",
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=max(1, sequence),
        headers_only=True,
        flow_control=True,  # there may be too many for one connection's buffer
    )
    return _delivered(client, bucket, config, "")


async def _delivered(
    client: Client, bucket: str, wanted: ConsumerConfig, domain: str
) -> AsyncGenerator[tuple[Msg | None, int]]:
    """Nothing first and once a second, else each message, with how many are still to come.

    Ends when a message was missed, nothing is heard any more, or after a reconnect.
    """
    loop, reconnects = asyncio.get_running_loop(), client.stats["reconnects"]
    messages: asyncio.Queue[Msg] = asyncio.Queue()  # bounded by the subscription's own limits
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=messages.put)
    try:
        jetstream = client.jetstream(timeout=2, domain=domain or None)
        info = await jetstream.add_consumer(f"KV_{bucket}", _consumer(wanted, inbox))
        _obey_cancellation()
        delivered, heard_s, pending = 0, loop.time(), info.num_pending or 0
        yield None, pending
        while client.stats["reconnects"] == reconnects:
            message = await _next(messages)
            if message is None:
                if loop.time() - heard_s > _SILENCE_MAX_S:
                    return
                yield None, pending
                continue
            heard_s = loop.time()
            if not message.reply:  # a heartbeat
                continue
            if message.reply.startswith(_FLOW):
                await message.respond(b"")  # go on: what came until here was read
                continue
            delivered += 1
            if message.metadata.sequence.consumer != delivered:
                return
            pending = message.metadata.num_pending
            yield message, pending
    finally:
        with contextlib.suppress(NatsError, OSError):
            await subscription.unsubscribe()


def _consumer(wanted: ConsumerConfig, inbox: str) -> ConsumerConfig:
    return wanted.evolve(
        # Named, what it reads stands in the subject of the request, where servers can permit it.
        name=f"follow-{inbox.rpartition('.')[2]}",
        deliver_subject=inbox,
        ack_policy=AckPolicy.NONE,
        max_deliver=1,
        idle_heartbeat=_HEARTBEAT_S,
        mem_storage=True,
        num_replicas=1,
    )


async def _next(messages: asyncio.Queue[Msg]) -> Msg | None:
    """The next message, or None once a second: for all watches of a process at once."""
    rest_s = _LOOK_EVERY_S - asyncio.get_running_loop().time() % _LOOK_EVERY_S
    try:
        async with asyncio.timeout(rest_s):
            return await messages.get()
    except TimeoutError:
        return None


def _obey_cancellation() -> None:
    """Let a cancellation through that Python 3.11's wait_for has kept back: see `background`."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _stored(message: Msg) -> Stored:
    headers = message.headers or {}
    stored_unix_ns = unix_ns_of(message.metadata.timestamp)
    return Stored(headers, int(headers.get(_SIZE, "0")), stored_unix_ns)
