"""Gateways ask for credit; abandoned leases come back once their usage is posted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol
from uuid import UUID

import structlog
from busbar_contracts.billing.v1 import leases_pb2
from busbar_errors import Unavailable
from busbar_messaging.background import rest_s
from busbar_messaging.topology import BILLING_USAGE, CREDIT_LEASES, CREDIT_RECALLS, USAGE
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from busbar_billing.adapters import metrics
from busbar_billing.domain.leases import TTL_MS, Ask, Refusal
from busbar_billing.domain.names import is_tenant_id
from busbar_billing.usecases.leases import (
    Answered,
    Asker,
    LeaseStore,
    answer_asks,
    close_settled,
    to_be_recalled,
)

log = structlog.get_logger()

ASKS_MAX = 512
WAITING_MAX = 256
RECALLED_AT_ONCE_MAX = 1_000
STALE_S = 2.0
"""Who asked longer ago has given up."""
RECLAIM_INTERVAL = timedelta(seconds=1)
_STOOD_STILL_S = 5.0
"""Who looks again only after so long was stopped, and did not answer either."""
_RETRY_SOON_MS = 250
_NAME_MAX = 100
_UUID_BYTES = 16
_BUS_AWAY = (NatsError, JetStreamError, TimeoutError, OSError)
_REFUSALS = {
    Refusal.BALANCE: leases_pb2.LEASE_REFUSAL_BALANCE,
    Refusal.BUDGET: leases_pb2.LEASE_REFUSAL_BUDGET,
    Refusal.SUSPENDED: leases_pb2.LEASE_REFUSAL_SUSPENDED,
    Refusal.UNKNOWN_TENANT: leases_pb2.LEASE_REFUSAL_UNKNOWN_TENANT,
    Refusal.CLOSED: leases_pb2.LEASE_REFUSAL_CLOSED,
}


class Recalls:
    """Asks all gateways to give back what they do not use; best effort."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def recall(self, tenant_ids: Sequence[str]) -> None:
        """Of these tenants."""
        for start in range(0, len(tenant_ids), RECALLED_AT_ONCE_MAX):
            some = leases_pb2.CreditRecall(
                tenant_ids=tenant_ids[start : start + RECALLED_AT_ONCE_MAX]
            )
            await _publish(self._client, CREDIT_RECALLS, some.SerializeToString())


class LeaseDesk:
    """Answers asks, one call after the other, in the order in which they came."""

    def __init__(
        self,
        client: Client,
        store: LeaseStore,
        new_id: Callable[[], UUID],
        *,
        refused: Callable[[str, int], None] | None = None,
    ) -> None:
        self._client = client
        self._recalls = Recalls(client)
        self._refused = refused
        self._store = store
        self._new_id = new_id
        self._waiting: asyncio.Queue[tuple[Msg, float]] = asyncio.Queue(WAITING_MAX)
        self.unanswered = 0
        """Calls that nobody answered: too many waited, or for too long."""

    async def run(self) -> None:
        """Answer for ever."""
        await self._client.subscribe(CREDIT_LEASES, queue="billing", cb=self._take)
        while True:
            message, arrived = await self._waiting.get()
            if time.monotonic() - arrived > STALE_S:
                self.unanswered += 1
                continue
            try:
                await self._answer(message)
            except Unavailable as error:
                self.unanswered += 1
                log.warning("leases not granted", reason=error.reason)
                await self._respond(message, leases_pb2.LeaseReply())
            except Exception:
                log.exception("lease call failed")

    async def _take(self, message: Msg) -> None:
        try:
            self._waiting.put_nowait((message, time.monotonic()))
        except asyncio.QueueFull:
            self.unanswered += 1
            log.warning("lease call dropped: too many wait")

    async def _answer(self, message: Msg) -> None:
        call = read_call(message.data)
        if call is None:
            log.warning("unreadable lease call")
            await self._respond(message, leases_pb2.LeaseReply())
            return
        asker, asks = call
        now_unix_ms = time.time_ns() // 1_000_000
        answers = await answer_asks(self._store, asker, asks, self._new_id, now_unix_ms)
        for one in answers:
            metrics.LEASE_ASKS.labels(one.grant.refusal or "granted").inc()
        await self._respond(message, write_reply(answers, now_unix_ms))
        self._tell_refused(asks)
        await self._recalls.recall(to_be_recalled(asks, answers))

    def _tell_refused(self, asks: Sequence[Ask]) -> None:
        if self._refused is None:
            return
        for ask in asks:
            if ask.refused_below_nanos:
                self._refused(ask.tenant_id, ask.refused_below_nanos)

    async def _respond(self, message: Msg, reply: leases_pb2.LeaseReply) -> None:
        if message.reply:
            await _publish(self._client, message.reply, reply.SerializeToString())


async def _publish(client: Client, subject: str, payload: bytes) -> None:
    try:
        await client.publish(subject, payload)
    except _BUS_AWAY as error:
        log.warning("bus away", error=repr(error))


def read_call(payload: bytes) -> tuple[Asker, list[Ask]] | None:
    """Translate a call; None when nobody can have meant it."""
    try:
        call = leases_pb2.LeaseCall.FromString(payload)
    except DecodeError:
        return None
    names = (call.gateway_id, call.run_id)
    if any(not name or len(name) > _NAME_MAX or "\x00" in name for name in names):
        return None
    tenants = {ask.tenant_id for ask in call.asks}
    if len(call.asks) > ASKS_MAX or len(tenants) != len(call.asks):
        return None
    if not all(is_tenant_id(tenant_id) for tenant_id in tenants):
        return None
    return Asker(*names), [_read_ask(ask) for ask in call.asks]


def _read_ask(ask: leases_pb2.LeaseAsk) -> Ask:
    raw = ask.lease_id
    return Ask(
        tenant_id=ask.tenant_id,
        lease_id=UUID(bytes=raw) if len(raw) == _UUID_BYTES else None,
        want_nanos=max(0, ask.want_nanos),
        need_nanos=max(0, ask.need_nanos),
        returned_nanos=max(0, ask.returned_nanos),
        closing=ask.closing,
        refused_below_nanos=max(0, ask.refused_below_nanos),
    )


def write_reply(answers: Sequence[Answered], now_unix_ms: int) -> leases_pb2.LeaseReply:
    """Translate answers."""
    return leases_pb2.LeaseReply(grants=[_write_grant(one, now_unix_ms) for one in answers])


def _write_grant(one: Answered, now_unix_ms: int) -> leases_pb2.LeaseGrant:
    lease, refusal = one.grant.lease, one.grant.refusal
    retry_unix_ms = 0
    if refusal in {Refusal.BALANCE, Refusal.BUDGET} and one.held_elsewhere_nanos:
        retry_unix_ms = now_unix_ms + _RETRY_SOON_MS
    elif refusal is Refusal.BUDGET:
        retry_unix_ms = one.budget_ends_unix_ms
    grant = leases_pb2.LeaseGrant(
        tenant_id=one.grant.tenant_id,
        refusal=_REFUSALS[refusal] if refusal else leases_pb2.LEASE_REFUSAL_UNSPECIFIED,
        available_nanos=one.available_nanos,
        held_elsewhere_nanos=one.held_elsewhere_nanos,
        retry_unix_ms=retry_unix_ms,
    )
    if lease is not None:
        grant.lease_id = lease.lease_id.bytes
        grant.granted_nanos = lease.granted_nanos
        grant.posted_nanos = lease.posted_nanos
        grant.currency = lease.currency
        grant.expires_unix_ms = lease.expires_unix_ms
        grant.ttl_ms = TTL_MS
    return grant


class ClosingLeases(Protocol):
    """What reclaiming needs of the leases besides LeaseStore."""

    async def expire(self) -> None:
        """Begin to close what nobody renewed."""
        ...

    async def unmarked(self) -> list[UUID]:
        """Closing leases of which it is not known yet what must be posted first."""
        ...

    async def mark(self, lease_ids: Sequence[UUID], sequence: int) -> None:
        """They close once USAGE is posted up to `sequence`."""
        ...

    async def any_to_close(self) -> bool:
        """Whether any lease waits for its usage to be posted."""
        ...


class Reclaimer:
    """Takes back leases that are abandoned or done with, when their usage is posted.

    While billing cannot answer, nobody can renew: what expired meanwhile gets a
    whole TTL from when billing could answer again, also after a restart, or after it
    was too busy or stopped.
    """

    def __init__(
        self,
        client: Client,
        leases: ClosingLeases,
        store: LeaseStore,
        new_id: Callable[[], UUID],
        *,
        clock: Callable[[], float] = time.monotonic,
        unanswered: Callable[[], int] = lambda: 0,
    ) -> None:
        """`unanswered` counts the calls that were given up so far."""
        self._client = client
        self._jetstream = client.jetstream(timeout=2)
        self._leases = leases
        self._store = store
        self._new_id = new_id
        self._clock = clock
        self._unanswered = unanswered
        self._able_since = self._looked_at = clock()
        self._seen = self._disturbances()

    async def run(self) -> None:
        """Look every second, for ever."""
        while True:
            try:
                await self.look()
            except (*_BUS_AWAY, Unavailable) as error:
                self._able_since = self._clock()
                log.warning("leases not reclaimed", error=repr(error))
            except Exception:
                log.exception("reclaiming failed")
            await asyncio.sleep(rest_s(RECLAIM_INTERVAL.total_seconds()))

    async def look(self) -> None:
        """Expire, find out what must be posted first, close what is settled."""
        looked_at, self._looked_at = self._looked_at, self._clock()
        stood_still = self._looked_at - looked_at > _STOOD_STILL_S
        seen, self._seen = self._seen, self._disturbances()
        if stood_still or not self._client.is_connected or seen != self._seen:
            self._able_since = self._clock()
        if (self._clock() - self._able_since) * 1000 >= TTL_MS:
            await self._leases.expire()
        if not await self._leases.any_to_close():
            return
        if unmarked := await self._leases.unmarked():
            state = (await self._jetstream.stream_info(USAGE.name)).state
            await self._leases.mark(unmarked, state.last_seq)
        closed = await close_settled(self._store, await self._posted_up_to(), self._new_id)
        if closed:
            metrics.LEASES_RECLAIMED.inc(closed)
            log.info("leases closed", count=closed)

    def _disturbances(self) -> tuple[int, int]:
        return self._client.stats["reconnects"], self._unanswered()

    async def _posted_up_to(self) -> int:
        """Sequence in USAGE up to which everything is posted, or given up to the dead letters."""
        info = await self._jetstream.consumer_info(USAGE.name, BILLING_USAGE.durable)
        if not info.num_pending and not info.num_ack_pending and info.delivered is not None:
            return info.delivered.stream_seq
        return info.ack_floor.stream_seq if info.ack_floor is not None else 0
