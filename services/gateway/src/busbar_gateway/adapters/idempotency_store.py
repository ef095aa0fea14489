"""Idempotency keys in their bucket, claimed by compare-and-set so that one request wins.

Every gateway reads the headers of all that is kept there, its own and the
others', and so knows what each tenant has of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from busbar_contracts.gateway.v1.idempotency_pb2 import (
    HttpHeader,
    IdempotentAnswer,
    IdempotentRequest,
)
from busbar_errors import Unavailable
from busbar_messaging import topology
from busbar_messaging.watching import Anew, follow_headers
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.errors import Error as JetStreamError
from nats.js.kv import KeyValue

from busbar_gateway.domain.answer_shares import KeptAnswers
from busbar_gateway.domain.idempotency import Entry, KeptAnswer

log = structlog.get_logger()

CALL_TIMEOUT_S = 2.0
_WRONG_LAST_SEQUENCE = 10071
_OPERATION = "KV-Operation"
_MARKER_TTL = "1s"
"""The shortest that there is."""
_TENANT = "Busbar-Tenant"
_FAILURES = (NatsError, JetStreamError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and the revision that whoever replaces it must name."""

    entry: Entry
    revision: int


class IdempotencyStore:
    """The bucket; every call raises Unavailable when the bus cannot answer."""

    def __init__(self, client: Client, unix_s: Callable[[], float] = time.time) -> None:
        self._client = client
        self._unix_s = unix_s
        self._kept = _nothing_kept()
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

    async def follow(self) -> None:
        """Keep count of what the bucket holds of each tenant, for ever."""
        async for told in follow_headers(self._client, topology.IDEMPOTENCY.name):
            if isinstance(told, Anew):
                self._kept = _nothing_kept()
            elif (tenant_id := told.headers.get(_TENANT)) is not None:
                self._kept.add(tenant_id, told.size_bytes, told.stored_unix_ns / 1e9)

    def left_bytes(self, tenant_id: str) -> int:
        """How much more of this tenant's answers may be kept."""
        return self._kept.left_bytes(tenant_id, self._unix_s())

    def wait_s(self, tenant_id: str) -> float:
        """After how long the first of this tenant's answers ends."""
        return self._kept.wait_s(tenant_id, self._unix_s())

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

    async def keep(self, name: str, entry: Entry, revision: int, tenant_id: str) -> None:
        """Add the answer to an entry that was claimed as `revision`; it counts for its tenant."""
        if not await self._replace(name, revision, _encode(entry), {_TENANT: tenant_id}):
            raise Unavailable("another gateway took this idempotency key over")

    async def forget(self, name: str, revision: int) -> None:
        """Free a key whose request failed and cost nothing, unless somebody took it over.

        The marker goes at once: it would stay as long as an answer, and failures are free.
        """
        await self._replace(name, revision, b"", {_OPERATION: "DEL", Header.MSG_TTL: _MARKER_TTL})

    async def _replace(
        self, name: str, revision: int, value: bytes, headers: dict[str, str]
    ) -> bool:
        """Write what follows `revision`; say whether that was still the last one."""
        subject = topology.entry_subject(topology.IDEMPOTENCY, name, "")
        headers[Header.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(revision)
        try:
            await self._jetstream().publish(subject, value, headers=headers)
        except _FAILURES as error:
            if isinstance(error, APIError) and error.err_code == _WRONG_LAST_SEQUENCE:
                return False
            raise _unavailable(error) from error
        return True

    def _jetstream(self) -> JetStreamContext:
        return self._client.jetstream(timeout=CALL_TIMEOUT_S)

    async def _bucket(self) -> KeyValue:
        if self._opened is None:
            try:
                self._opened = await self._jetstream().key_value(topology.IDEMPOTENCY.name)
            except _FAILURES as error:
                raise _unavailable(error) from error
        return self._opened


def _nothing_kept() -> KeptAnswers:
    return KeptAnswers(topology.IDEMPOTENCY_BYTES_MAX, topology.IDEMPOTENCY_TTL.total_seconds())


def _unavailable(error: BaseException) -> Unavailable:
    """What customers read; what the bus said is for the log."""
    log.warning("idempotency keys not looked up", error=repr(error))
    return Unavailable(
        "idempotency keys cannot be looked up now: their store does not answer; try again"
    )


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
