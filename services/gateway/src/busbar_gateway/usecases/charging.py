"""The billable record of an answer, and what happens to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from busbar_contracts.gateway.v1.usage_pb2 import UsageOutcome, UsageRecord
from busbar_contracts.node.v1.work_pb2 import WorkFinished

from busbar_gateway.domain.failures import DeadlineExceeded
from busbar_gateway.usecases.calls import InferenceCall

SlotT = TypeVar("SlotT")
ChargeT = TypeVar("ChargeT")


class UsageLog(Protocol[SlotT, ChargeT]):
    """Where records become durable."""

    def claim(self, request_id: bytes, tenant_id: str) -> SlotT:
        """Reserve the place of a charge; raises Unavailable when too many are under way."""
        ...

    async def commit(
        self, slot: SlotT, record: UsageRecord, deadline: float, *, stays: Callable[[], bool]
    ) -> ChargeT:
        """Return when the record is durable; on any failure it has been taken back.

        Raises Unavailable, or TimeoutError at `deadline` on the event loop's clock. On
        cancellation `stays` says whether it is made durable all the same.
        """
        ...

    def commit_later(self, slot: SlotT, record: UsageRecord) -> None:
        """Make the record durable in the background."""
        ...

    def delivered(self, charge: ChargeT) -> None:
        """The customer has the answer, or will in the next moment: the charge stands.

        Does nothing for a charge that was taken back, or once more.
        """
        ...

    def take_back(self, charge: ChargeT, reason: str) -> None:
        """The customer did not get the answer after all: no charge."""
        ...


@dataclass(slots=True)
class Delivered:
    """What of an answer counts."""

    input_tokens: int = 0
    output_tokens: int = 0
    response_bytes: int = 0
    node: str = ""
    attempt: int = 0
    compute_us: int = 0
    cached_tokens: int = 0

    @classmethod
    def of(cls, finished: WorkFinished, response_bytes: int, node: str, attempt: int) -> Delivered:
        """All of a finished answer."""
        usage = finished.usage
        return cls(
            usage.input_tokens,
            usage.output_tokens,
            response_bytes,
            node,
            attempt,
            finished.timings.compute_us,
            usage.cached_tokens,
        )


def usage_record(
    call: InferenceCall,
    delivered: Delivered,
    *,
    outcome: UsageOutcome.ValueType,
    admitted_unix_ns: int,
    finished_unix_ns: int,
    traceparent: str,
    lease_id: bytes,
) -> UsageRecord:
    """Write the record of what was delivered."""
    return UsageRecord(
        request_id=call.request_id,
        tenant_id=call.caller.tenant_id,
        key_id=call.caller.key_id,
        project_id=call.caller.project_id,
        deployment=call.route.deployment,
        price_class=call.route.manifest.price_class,
        api=call.api,
        outcome=outcome,
        admitted_unix_ns=admitted_unix_ns,
        finished_unix_ns=finished_unix_ns,
        input_tokens=delivered.input_tokens,
        output_tokens=delivered.output_tokens,
        cached_tokens=min(delivered.cached_tokens, delivered.input_tokens),
        request_bytes=call.request_bytes or len(call.payload),
        response_bytes=delivered.response_bytes,
        compute_us=delivered.compute_us,
        node=delivered.node,
        attempt=delivered.attempt,
        traceparent=traceparent,
        lease_id=lease_id,
    )


def id_of_part(request_id: bytes) -> bytes:
    """What a part of an answer is charged under when the charge of all of it was taken back.

    Nothing can be charged any more under the request's own id; this is the one beside it. See
    decision 71.
    """
    return request_id[:-1] + bytes([request_id[-1] ^ 1])


async def commit_in_time(
    usage: UsageLog[SlotT, ChargeT],
    call: InferenceCall,
    record: UsageRecord,
    stays: Callable[[], bool],
) -> ChargeT:
    """Make the record durable before the request's deadline; `stays` as in UsageLog.commit.

    Raises Unavailable or DeadlineExceeded; then nothing stays charged.
    """
    slot = usage.claim(call.request_id, call.caller.tenant_id)
    try:
        return await usage.commit(slot, record, call.deadline, stays=stays)
    except TimeoutError as error:
        raise DeadlineExceeded("the deadline passed before the charge was durable") from error
