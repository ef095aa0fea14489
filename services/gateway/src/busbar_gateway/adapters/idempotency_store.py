"""Idempotency keys in their bucket, claimed by compare-and-set so that one request wins."""

from __future__ import annotations

from dataclasses import dataclass

from busbar_contracts.gateway.v1.idempotency_pb2 import (
    HttpHeader,
    IdempotentAnswer,
    IdempotentRequest,
)
from busbar_errors import Unavailable
from busbar_messaging import topology
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from busbar_gateway.domain.idempotency import Entry, KeptAnswer

CALL_TIMEOUT_S = 2.0
_WRONG_LAST_SEQUENCE = 10071
_FAILURES = (NatsError, JetStreamError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and the revision that whoever replaces it must name."""

    entry: Entry
    revision: int


class IdempotencyStore:
    """The bucket; every call raises Unavailable when the bus cannot answer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._opened: KeyValue | None = None

    async def find(self, name: str) -> Found | None:
        """Return what is known under `name`."""
        try:
            entry = await (await self._bucket()).get(name)
        except KeyNotFoundError:
            return None
        except _FAILURES as error:
            raise _unavailable(error) from error
        if not entry.value:
            return None
        return Found(_decode(entry.value), entry.revision or 0)

    async def claim(self, name: str, entry: Entry, replaced: int | None) -> int | None:
        """Write an entry, in place of revision `replaced` if any; None when another was first."""
        bucket = await self._bucket()
        try:
            if replaced is None:
                return await bucket.create(name, _encode(entry))
            return await bucket.update(name, _encode(entry), last=replaced)
        except KeyWrongLastSequenceError:
            return None
        except _FAILURES as error:
            raise _unavailable(error) from error

    async def keep(self, name: str, entry: Entry, revision: int) -> None:
        """Add the answer to an entry that was claimed as `revision`."""
        if await self.claim(name, entry, revision) is None:
            raise Unavailable("another gateway took this idempotency key over")

    async def forget(self, name: str, revision: int) -> None:
        """Free a key whose request failed and cost nothing."""
        try:
            await (await self._bucket()).delete(name, last=revision)
        except _FAILURES as error:
            if isinstance(error, APIError) and error.err_code == _WRONG_LAST_SEQUENCE:
                return  # somebody took it over
            raise _unavailable(error) from error

    async def _bucket(self) -> KeyValue:
        if self._opened is None:
            jetstream = self._client.jetstream(timeout=CALL_TIMEOUT_S)
            try:
                self._opened = await jetstream.key_value(topology.IDEMPOTENCY.name)
            except _FAILURES as error:
                raise _unavailable(error) from error
        return self._opened


def _unavailable(error: BaseException) -> Unavailable:
    return Unavailable(f"idempotency keys cannot be looked up now: {error!r}")


def _encode(entry: Entry) -> bytes:
    message = IdempotentRequest(
        fingerprint=entry.fingerprint,
        gateway_id=entry.gateway_id,
        run_id=entry.run_id,
        request_id=entry.request_id,
        deadline_unix_ms=round(entry.deadline_unix_s * 1000),
    )
    if entry.answer is not None:
        kept = entry.answer
        headers = [HttpHeader(name=name, value=value) for name, value in kept.headers]
        message.answer.CopyFrom(
            IdempotentAnswer(
                status=kept.status,
                headers=headers,
                body=kept.body or b"",
                body_dropped=kept.body is None,
            )
        )
    return message.SerializeToString()


def _decode(value: bytes) -> Entry:
    message = IdempotentRequest.FromString(value)
    answer = None
    if message.HasField("answer"):
        said = message.answer
        answer = KeptAnswer(
            said.status,
            tuple((header.name, header.value) for header in said.headers),
            None if said.body_dropped else said.body,
        )
    return Entry(
        message.fingerprint,
        message.gateway_id,
        message.run_id,
        message.request_id,
        message.deadline_unix_ms / 1000,
        answer,
    )
