"""The USAGE stream: from messages to postings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol
from uuid import UUID

import structlog
from busbar_contracts.gateway.v1 import usage_pb2
from busbar_errors import Rejected
from busbar_messaging.dead_letters import stored_unix_ns, stream_sequence
from busbar_messaging.dispositions import decode
from busbar_observability.tracing import record_span
from nats.aio.msg import Msg
from opentelemetry.trace import SpanKind, Tracer

from busbar_billing.adapters import metrics
from busbar_billing.adapters.bus.consuming import Refusal
from busbar_billing.adapters.ids import UUID_BYTES, read_id
from busbar_billing.domain.usage import Outcome, UsageRecord, UsageVoid, by_the_stream_clock
from busbar_billing.usecases.post_usage import (
    PostingReport,
    RatedRecord,
    Uncovered,
    UsageStore,
    post_usage,
)

log = structlog.get_logger()

# Each tenant's lease, balance, month and buckets are written once a transaction: with 500 tenants
# 5,000 records cost the database a fifth less than 2,000, and are written within a second.
RECORDS_PER_TRANSACTION_MAX = 5_000
_REASON_MAX = 200
_OUTCOMES = {
    usage_pb2.USAGE_OUTCOME_COMPLETED: Outcome.COMPLETED,
    usage_pb2.USAGE_OUTCOME_ABANDONED: Outcome.ABANDONED,
}


class UsageEvents(Protocol):
    """What the others are told."""

    def usage_posted(self, charged: Sequence[RatedRecord]) -> None:
        """Charges were posted."""
        ...

    def charges_uncovered(self, uncovered: Sequence[Uncovered]) -> None:
        """Charges came that no lease covered."""
        ...


class UsagePoster:
    """Posts batches of USAGE messages."""

    def __init__(
        self,
        store: UsageStore,
        events: UsageEvents,
        tracer: Tracer,
        new_id: Callable[[], UUID],
    ) -> None:
        self._store = store
        self._events = events
        self._tracer = tracer
        self._new_id = new_id

    async def handle(self, messages: Sequence[Msg]) -> list[Refusal]:
        """Post what the messages hold; returns what had to be left out."""
        inbox = Inbox()
        for message in messages:
            inbox.add(message)
        for records, voids in transactions(inbox.records, inbox.voids):
            report = await self._post(records, voids)
            for one in (*report.refused, *report.conflicting):
                inbox.refuse_record(one.record, one.reason)
        return inbox.refusals

    async def _post(self, records: list[UsageRecord], voids: list[UsageVoid]) -> PostingReport:
        start_ns = time.time_ns()
        report = await post_usage(self._store, records, voids, self._new_id)
        end_ns = time.time_ns()
        metrics.POSTING_SECONDS.observe((end_ns - start_ns) / 1e9)
        metrics.RECORDS_POSTED.inc(len(report.charged))
        metrics.DUPLICATES.inc(report.duplicates)
        metrics.CONFLICTING.inc(len(report.conflicting))
        metrics.VOIDS_POSTED.inc(len(report.voided))
        for one in report.charged:
            if one.rating.rated_class != one.record.price_class:
                metrics.UNPRICED.labels(one.record.deployment).inc()
            if one.record.traceparent:
                self._trace(one, start_ns, end_ns)
        if report.charged:
            self._events.usage_posted(report.charged)
        if report.uncovered:
            self._report_uncovered(report.uncovered)
        return report

    def _report_uncovered(self, uncovered: Sequence[Uncovered]) -> None:
        for one in uncovered:
            metrics.UNCOVERED.labels("available").inc(one.from_available_nanos)
            metrics.UNCOVERED.labels("receivable").inc(one.receivable_nanos)
        self._events.charges_uncovered(uncovered)

    def _trace(self, posted: RatedRecord, start_ns: int, end_ns: int) -> None:
        record = posted.record
        record_span(
            self._tracer,
            "ledger post",
            traceparent=record.traceparent,
            start_unix_ns=start_ns,
            end_unix_ns=end_ns,
            kind=SpanKind.CONSUMER,
            attributes={
                "busbar.tenant": record.tenant_id,
                "busbar.deployment": record.deployment,
                "busbar.request_id": f"req_{record.request_id.hex}",
                "busbar.cost_nanos": posted.rating.charge_nanos,
                "busbar.currency": posted.rating.currency,
                "busbar.transfer_id": str(posted.transfer_id),
            },
        )


class Inbox:
    """The readable records and voids of a batch of messages, and what had to be left out of it."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []
        self.voids: list[UsageVoid] = []
        self.refusals: list[Refusal] = []
        self._origins: dict[UsageRecord, tuple[Msg, str, usage_pb2.UsageRecord]] = {}

    def add(self, message: Msg) -> None:
        """Take what can be read of a message."""
        try:
            batch = decode(usage_pb2.UsageRecorded, message.data)
        except Rejected as error:
            self.refusals.append(Refusal(message, message.data, error.reason))
            return
        sequence = stream_sequence(message)
        stored = stored_unix_ns(message)
        moved = 0
        for record in batch.records:
            try:
                read = read_record(record, batch.gateway_id, sequence)
            except Rejected as error:
                self._refuse(message, _alone(batch.gateway_id, record), error.reason)
            else:
                timed = by_the_stream_clock(read, stored)
                moved += timed is not read
                self.records.append(timed)
                self._origins.setdefault(timed, (message, batch.gateway_id, record))
        if moved:
            metrics.CLOCK_CORRECTED.inc(moved)
            log.warning("gateway's clock off", gateway=batch.gateway_id[:_REASON_MAX], moved=moved)
        for void in batch.voids:
            try:
                self.voids.append(read_void(void))
            except Rejected as error:
                only = usage_pb2.UsageRecorded(gateway_id=batch.gateway_id, voids=[void])
                self._refuse(message, only, error.reason)

    def refuse_record(self, read: UsageRecord, reason: str) -> None:
        """Leave out a record that was read but cannot be billed."""
        message, gateway_id, record = self._origins[read]
        self._refuse(message, _alone(gateway_id, record), reason)

    def _refuse(self, message: Msg, only: usage_pb2.UsageRecorded, reason: str) -> None:
        """What is left out travels alone, as a UsageRecorded that can be replayed."""
        self.refusals.append(Refusal(message, only.SerializeToString(), reason))


def _alone(gateway_id: str, record: usage_pb2.UsageRecord) -> usage_pb2.UsageRecorded:
    return usage_pb2.UsageRecorded(gateway_id=gateway_id, records=[record])


def read_record(
    message: usage_pb2.UsageRecord, gateway_id: str, stream_sequence: int = 0
) -> UsageRecord:
    """Translate one record; raise Rejected when it names no request or no known outcome."""
    outcome = _OUTCOMES.get(message.outcome)
    if outcome is None:
        raise Rejected(f"outcome {message.outcome} is none that we know")
    return UsageRecord(
        request_id=_request_id(message.request_id),
        tenant_id=message.tenant_id,
        key_id=message.key_id,
        deployment=message.deployment,
        price_class=message.price_class,
        api=message.api,
        outcome=outcome,
        admitted_unix_ns=message.admitted_unix_ns,
        finished_unix_ns=message.finished_unix_ns,
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
        request_bytes=message.request_bytes,
        response_bytes=message.response_bytes,
        compute_us=message.compute_us,
        node=message.node,
        attempt=message.attempt,
        gateway_id=gateway_id,
        traceparent=message.traceparent,
        cached_tokens=message.cached_tokens,
        project_id=message.project_id,
        # None also for what is no id: the answer was delivered, so the charge must be posted.
        lease_id=read_id(message.lease_id),
        stream_sequence=stream_sequence,
    )


def read_void(message: usage_pb2.UsageVoid) -> UsageVoid:
    """Translate one void; raise Rejected when it names no request."""
    return UsageVoid(
        request_id=_request_id(message.request_id),
        tenant_id=message.tenant_id.replace("\x00", ""),
        reason=message.reason.replace("\x00", "")[:_REASON_MAX],
    )


def _request_id(raw: bytes) -> UUID:
    request_id = read_id(raw)
    if request_id is None:
        raise Rejected(f"request_id has {len(raw)} bytes instead of {UUID_BYTES}")
    return request_id


def transactions(
    records: list[UsageRecord], voids: list[UsageVoid]
) -> Iterator[tuple[list[UsageRecord], list[UsageVoid]]]:
    """Parts small enough for a transaction; voids go with the last, as their order is free."""
    size = RECORDS_PER_TRANSACTION_MAX
    parts = [records[start : start + size] for start in range(0, len(records), size)]
    if voids and not parts:
        parts = [[]]
    for number, part in enumerate(parts):
        yield part, voids if number == len(parts) - 1 else []
