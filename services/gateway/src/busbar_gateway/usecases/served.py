"""One request from admission to its end: what unary and streamed answers share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from busbar_contracts.gateway.v1.usage_pb2 import UsageOutcome, UsageRecord
from opentelemetry.trace import SpanKind

from busbar_gateway.domain.admission import Ticket
from busbar_gateway.domain.costs import cost_of
from busbar_gateway.domain.credit import Reservation
from busbar_gateway.domain.failures import InsufficientQuota, ModelFailed, RateLimited, answer_for
from busbar_gateway.domain.limits import Grant
from busbar_gateway.domain.policies import Band
from busbar_gateway.usecases.admitting import Admissions
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.charging import (
    Delivered,
    UsageLog,
    commit_in_time,
    id_of_part,
    usage_record,
)
from busbar_gateway.usecases.crediting import Credit
from busbar_gateway.usecases.dispatch import Dispatch
from busbar_gateway.usecases.dispatcher import Dispatcher
from busbar_gateway.usecases.limiting import Limiting
from busbar_gateway.usecases.request_trace import RequestTracing, traceparent_of

_NS_PER_S = 1_000_000_000
_OK, _CLIENT_GONE = 200, 499
_COMPLETED = UsageOutcome.USAGE_OUTCOME_COMPLETED


class Observer(Protocol):
    """Who counts."""

    def admitted(self, band: Band, queued_s: float) -> None:
        """A request got its turn after waiting so long for it."""
        ...

    def ended(
        self, call: InferenceCall, error: BaseException | None, delivered: Delivered, total_s: float
    ) -> None:
        """A request has ended; `error` is None when it was answered in full."""
        ...


@dataclass(slots=True)
class Collaborators:
    """What serving takes; the same for all requests."""

    limiting: Limiting
    admissions: Admissions
    dispatcher: Dispatcher
    usage: UsageLog[Any, Any]
    credit: Credit
    tracing: RequestTracing
    observer: Observer
    stopping: bool = False
    """True once the gateway is told to stop: who is cut off then did not leave."""
    unix_ns: Callable[[], int] = time.time_ns
    """The time that records say; traces keep our own."""


class Served:
    """One request. `start`, then `stop` and `end` once each whatever happens between."""

    def __init__(self, collaborators: Collaborators, call: InferenceCall) -> None:
        self.collaborators = collaborators
        self.call = call
        self.delivered = Delivered()
        self.first_byte_unix_ns: int | None = None
        self._trace = collaborators.tracing.begin(call)
        self._admitted_unix_ns = 0
        self._grant: Grant | None = None
        self._ticket: Ticket | None = None
        self._dispatch: Dispatch | None = None
        self._streamed = False
        self._cost: float | None = None
        self._money: Reservation | None = None
        self.held_back = False
        """Whether some of what is charged leaves only when the charge is durable."""
        self.stays_charged = False
        """Whether `commit` was cancelled and the charge becomes durable all the same."""
        self._taken_back = False
        self._queued_s: float | None = None
        """None until the request got its turn."""

    async def start(self, *, streamed: bool) -> Dispatch:
        """Claim the likely cost, wait for a turn, then send the request out."""
        with_ = self.collaborators
        self._streamed = streamed
        self._grant = with_.limiting.enter(self.call)
        self._money = with_.credit.claim(self.call) or await with_.credit.wait(self.call)
        ticket = self._ticket = await self._admit()
        self._queued_s = ticket.started - ticket.arrived
        with_.observer.admitted(ticket.band, self._queued_s)
        self._admitted_unix_ns = with_.unix_ns()
        self._dispatch = Dispatch(with_.dispatcher, self.call, streamed=streamed)
        if self._trace is None:
            self._dispatch.send(None, "")
        else:
            publish = self._trace.child("gateway publish", SpanKind.PRODUCER)
            self._dispatch.send(publish, traceparent_of(publish))
        return self._dispatch

    def used(self, input_tokens: int, output_tokens: int, compute_us: int = 0) -> None:
        """Note what the model has done for this request so far."""
        self._cost = cost_of(input_tokens, output_tokens, compute_us)
        if self._ticket is not None and self._cost is not None:
            self.collaborators.admissions.used(self.call.route.deployment, self._ticket, self._cost)

    def stop(self) -> None:
        """Give the slot back and end the work at the node if it goes on. Idempotent."""
        if self._ticket is not None:
            ticket, self._ticket = self._ticket, None
            self.collaborators.admissions.leave(self.call.route.deployment, ticket, self._cost)
        if self._dispatch is not None:
            dispatch, self._dispatch = self._dispatch, None
            dispatch.close()

    async def commit(self) -> Any:
        """Make the charge for `delivered` durable and return it.

        Raises Unavailable, DeadlineExceeded or InsufficientQuota; then nothing stays charged.
        Who leaves meanwhile has been answered but for the end, if it had a stream.
        """
        await self._pay()
        try:
            return await self._commit()
        except BaseException as error:
            self.stays_charged = isinstance(error, asyncio.CancelledError) and self._all_came()
            if not self.stays_charged:
                self.not_charged()
            raise

    def _all_came(self) -> bool:
        """Whether the customer has all that is charged, before the charge is durable."""
        return self._streamed and not self.waits_for_charge and not self.collaborators.stopping

    @property
    def waits_for_charge(self) -> bool:
        """Whether the answer, or the last of it, leaves only when the charge is durable."""
        return self.call.whole or self.held_back

    def covers(self, delivered: Delivered) -> bool:
        """Whether the claim covers this, or can be raised to it at once."""
        if self._money is None:
            return True
        cost = self.collaborators.credit.cost_nanos(self.call, delivered, self._admitted_unix_ns)
        return self.collaborators.credit.covers(self._money, cost)

    async def cover(self, delivered: Delivered, *, charged_before: bool) -> None:
        """Raise the claim to cover this; raises as `Credit.wait`.

        `charged_before` says that what was delivered before is charged if it is not covered.
        """
        credit = self.collaborators.credit
        if self._money is not None:
            cost = credit.cost_nanos(self.call, delivered, self._admitted_unix_ns)
            await self._cover(self._money, cost, charged_before=charged_before)

    def not_charged(self) -> None:
        """The charge was taken back: so is the money."""
        self._taken_back = True
        if self._money is not None:
            self.collaborators.credit.take_back(self._money)

    async def _pay(self) -> None:
        credit, money = self.collaborators.credit, self._money
        if money is None:
            return
        cost = credit.cost_nanos(self.call, self.delivered, self._admitted_unix_ns)
        if not credit.covers(money, cost):
            charged_before = self._streamed and not self.call.whole
            await self._cover(money, cost, charged_before=charged_before)
        credit.spend(money, self.call, self.delivered, cost)

    async def _cover(self, money: Reservation, cost: int, *, charged_before: bool) -> None:
        credit = self.collaborators.credit
        try:
            await credit.cover(money, self.call, cost)
        except (InsufficientQuota, RateLimited):
            if not charged_before:
                credit.worked_in_vain(self.call, cost)
            raise

    async def _commit(self) -> Any:
        usage = self.collaborators.usage
        if self._trace is None:
            record = self._record(_COMPLETED, "")
            return await commit_in_time(usage, self.call, record, self._all_came)
        span = self._trace.child("gateway commit")
        try:
            record = self._record(_COMPLETED, traceparent_of(span))
            return await commit_in_time(usage, self.call, record, self._all_came)
        finally:
            span.end()

    def judge_node(self, node: str, error: BaseException | None) -> None:
        """Note whether the edge could read what the node answered."""
        dispatcher = self.collaborators.dispatcher
        if error is None:
            dispatcher.troubles.answered(node)
        elif isinstance(error, ModelFailed) and self.call.canary:
            dispatcher.trials.garbled(self.call)
        elif isinstance(error, ModelFailed):
            dispatcher.troubles.garbled(node)

    def commit_abandoned(self, delivered: Delivered) -> None:
        """Charge what was delivered before the customer left, in the background."""
        self.delivered = delivered
        usage, credit = self.collaborators.usage, self.collaborators.credit
        traceparent = traceparent_of(self._trace.root) if self._trace else ""
        record = self._record(UsageOutcome.USAGE_OUTCOME_ABANDONED, traceparent)
        if self._taken_back:
            record.request_id = id_of_part(self.call.request_id)
        slot = usage.claim(record.request_id, self.call.caller.tenant_id)
        usage.commit_later(slot, record)
        if self._money is not None:
            cost = credit.cost_nanos(self.call, delivered, self._admitted_unix_ns)
            credit.spend(self._money, self.call, delivered, cost)

    def end(self, error: BaseException | None) -> None:
        """Count it, give up what it claims, and close its trace."""
        delivered, with_ = self.delivered, self.collaborators
        if self._money is not None:
            with_.credit.release(self._money)
        if self._grant is not None:
            grant, self._grant = self._grant, None
            used = delivered.input_tokens, delivered.output_tokens
            with_.limiting.leave(grant, *used)
        total_s = (time.time_ns() - self.call.received_unix_ns) / _NS_PER_S
        with_.observer.ended(self.call, error, delivered, total_s)
        with_.tracing.end(
            self._trace,
            self.call,
            error=error,
            first_byte_unix_ns=self.first_byte_unix_ns,
            attributes={
                "busbar.node": delivered.node,
                "busbar.attempt": delivered.attempt,
                "busbar.tokens.input": delivered.input_tokens,
                "busbar.tokens.output": delivered.output_tokens,
                **self._queue_time(),
                **self._http_status(error),
            },
        )

    def _queue_time(self) -> dict[str, float]:
        if self._queued_s is None:
            return {}
        return {"busbar.queue_ms": self._queued_s * 1000}

    def _http_status(self, error: BaseException | None) -> dict[str, int]:
        """The status that left over HTTP, by OpenTelemetry's name for it."""
        if self.call.api.startswith("kserve.grpc"):
            return {}
        begun = self._streamed and not self.call.whole and self.first_byte_unix_ns is not None
        if error is None or begun:
            status = _OK
        elif isinstance(error, Exception) and not isinstance(error, OSError):
            status = answer_for(error).http_status
        else:
            status = _CLIENT_GONE
        return {"http.response.status_code": status}

    async def _admit(self) -> Ticket:
        waiting = self._trace.child("gateway admit") if self._trace is not None else None
        admissions = self.collaborators.admissions
        try:
            ticket = admissions.enter(self.call)
            if ticket.turn is not None:
                try:
                    await ticket.turn
                except asyncio.CancelledError:
                    admissions.give_up(self.call.route.deployment, ticket)
                    raise
        finally:
            if waiting is not None:
                waiting.end()
        return ticket

    def _record(self, outcome: UsageOutcome.ValueType, traceparent: str) -> UsageRecord:
        return usage_record(
            self.call,
            self.delivered,
            outcome=outcome,
            admitted_unix_ns=self._admitted_unix_ns,
            finished_unix_ns=self.collaborators.unix_ns(),
            traceparent=traceparent,
            lease_id=b"" if self._money is None else self._money.lease.lease_id,
        )
