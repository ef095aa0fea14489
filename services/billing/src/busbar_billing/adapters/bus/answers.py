"""The stream USAGE as the auditor reads it: in order, any part of it again, consuming nothing."""

from __future__ import annotations

import contextlib
from datetime import datetime
from uuid import UUID

from busbar_contracts.gateway.v1 import usage_pb2
from busbar_errors import Rejected, Unavailable
from busbar_messaging.dead_letters import stored_unix_ns, stream_sequence
from busbar_messaging.dispositions import decode
from busbar_messaging.topology import BILLING_USAGE
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import StreamInfo
from nats.js.errors import Error as JetStreamError
from nats.js.errors import NotFoundError

from busbar_billing.adapters.bus.rereading import StreamReader
from busbar_billing.adapters.bus.usage import read_record, read_void
from busbar_billing.domain.audit.answers import Delivered
from busbar_billing.domain.usage import UsageRecord, by_the_stream_clock
from busbar_billing.usecases.audit_answers import Extent

_STREAM = BILLING_USAGE.stream
_BATCH_BYTES_MAX = 4 * 1024 * 1024
_TIMEOUT_S = 5.0
_AWAY = (NatsError, JetStreamError, TimeoutError, OSError)


class DeliveredAnswers:
    """Reads messages by their numbers."""

    def __init__(self, client: Client) -> None:
        self._reader = StreamReader(client, _STREAM)
        self._jetstream = client.jetstream(timeout=_TIMEOUT_S)

    async def extent(self) -> Extent:
        """Where the stream begins and how far it is posted. Raises Unavailable."""
        try:
            consumer = await self._jetstream.consumer_info(_STREAM, BILLING_USAGE.durable)
            stream = await self._jetstream.stream_info(_STREAM)
        except _AWAY as error:
            raise Unavailable(f"the bus does not say what is posted: {error!r}") from error
        floor = consumer.ack_floor.stream_seq if consumer.ack_floor else 0
        return Extent(stream.state.first_seq, floor, _created(stream))

    async def read(self, after: int, upto: int, limit: int) -> list[Delivered]:
        """Up to `limit` messages, in order; fewer are no sign of the end. Raises Unavailable."""
        try:
            found = await self._reader.read(after, min(limit, upto - after), _BATCH_BYTES_MAX)
        except _AWAY as error:
            raise Unavailable(f"the bus does not give usage again: {error!r}") from error
        every = [delivered(stream_sequence(one), one.data, stored_unix_ns(one)) for one in found]
        return [one for one in every if one.sequence <= upto]

    async def read_again(self, sequence: int) -> Delivered | None:
        """One message from the stream's leader; None when it is not there. Raises Unavailable."""
        try:
            found = await self._jetstream.get_msg(_STREAM, sequence)
        except NotFoundError:
            return None
        except _AWAY as error:
            raise Unavailable(f"the bus does not give usage again: {error!r}") from error
        return delivered(sequence, found.data or b"", None)


def _created(stream: StreamInfo) -> datetime:
    if stream.created is None:
        raise Unavailable("the bus does not say when USAGE was created")
    return stream.created


def delivered(sequence: int, payload: bytes, stored_ns: int | None) -> Delivered:
    """What a message says, its times as the poster reads them where it is known when it was stored.

    What cannot be read was refused by the poster, too, and is left out.
    """
    try:
        batch = decode(usage_pb2.UsageRecorded, payload)
    except Rejected:
        return Delivered(sequence, [])
    records: list[UsageRecord] = []
    voids: list[UUID] = []
    for record in batch.records:
        with contextlib.suppress(Rejected):
            read = read_record(record, batch.gateway_id, sequence)
            timed = read if stored_ns is None else by_the_stream_clock(read, stored_ns)
            records.append(timed)
    for void in batch.voids:
        with contextlib.suppress(Rejected):
            voids.append(read_void(void).request_id)
    return Delivered(sequence, records, voids)
