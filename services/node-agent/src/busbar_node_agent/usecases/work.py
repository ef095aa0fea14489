"""Work in hand: take an attempt, put it through Triton, answer it, account for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from busbar_contracts.node.v1 import status_pb2, work_pb2
from busbar_messaging.topology import MAX_FRAME_PAYLOAD_BYTES
from google.protobuf.message import DecodeError

from busbar_node_agent.domain.usage import TokenCount
from busbar_node_agent.domain.verdicts import Failure, FailureKind, judge, may_be_a_crash
from busbar_node_agent.usecases import frames
from busbar_node_agent.usecases.lane import Lane, TritonRefused

log = structlog.get_logger()

FIRST_SIGN_AFTER_S = 0.1
SIGN_INTERVAL_S = 1.0
_TICK_S = 0.1
_SUSPICIOUS = {
    FailureKind.DEADLINE_EXCEEDED,
    FailureKind.INTERNAL,
    FailureKind.UNAVAILABLE,
    FailureKind.ENGINE_LOST,
}
CRASH_TOLD_WITHIN_S = 0.3
"""A cut-off call is often the first that is heard of a Triton that died."""
TURN_WITHIN_S = 2.0
"""Longest that a suspect waits for another suspect; then it goes ahead beside it."""

Publish = Callable[[bytes, bytes], None]
"""Sends data to a subject without waiting; raises when it cannot."""


class Energy(Protocol):
    """Attributes joules; `measured` is False where there is no counter."""

    measured: bool

    def began(self) -> float:
        """A level to hand back to `ended`."""
        ...

    def ended(self, level: float) -> int:
        """Millijoules since then that belong to the attempt."""
        ...


class AttemptTrace(Protocol):
    """The spans of one sampled attempt."""

    traceparent: str
    """Of the span around the call of Triton; empty when it is not sampled."""

    def ended(self, failure: Failure | None, tokens: TokenCount) -> None:
        """The attempt is over."""
        ...


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt in hand. Times are time.monotonic(); uvloop's clock counts milliseconds."""

    work: work_pb2.InferenceWork
    lane: Lane
    picked_s: float
    called_s: float = 0.0
    last_sign_s: float = 0.0
    chunk_count: int = 0
    energy_level: float = 0.0
    compute_us: int = 0
    energy_mj: int = 0
    tokens: TokenCount = field(default_factory=TokenCount)
    given_up: Failure | None = None
    begun: bool = False
    accounted: bool = False
    task: asyncio.Task[None] | None = None

    def give_up(self, failure: Failure) -> None:
        """Cancel the call of Triton; the attempt answers with `failure`."""
        if self.given_up is not None:
            return
        self.given_up = failure
        # A task that is cancelled before its first step never takes one, nor answers.
        if self.begun and self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class WorkInHand:
    """Every attempt the node works on, and the counters of those it worked on."""

    node: str
    publish: Publish
    energy: Energy
    trace: Callable[[work_pb2.InferenceWork], AttemptTrace | None]
    on_measured: Callable[[status_pb2.WorkMeasured], None]
    on_poison: Callable[[bytes, str], None]
    """Takes what was no InferenceWork, and why."""
    unix_s: Callable[[], float] = time.time
    """Seconds since 1970 by the clock that deadlines are meant by."""
    finished_count: int = 0
    failed_count: int = 0
    handed_back_count: int = 0
    compute_us: int = 0
    queue_us: int = 0
    failed_by_kind: Counter[FailureKind] = field(default_factory=Counter[FailureKind])
    _attempts: dict[bytes, Attempt] = field(default_factory=dict[bytes, Attempt])
    _busy: asyncio.Event = field(default_factory=asyncio.Event)
    _suspect: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while Triton has a request that was in hand when a Triton was lost."""

    def __len__(self) -> int:
        return len(self._attempts)

    def take(self, data: bytes, lane: Lane) -> None:
        """Begin the work in `data`, which came for one of `lane`'s slots."""
        lane.occupied()
        try:
            work = work_pb2.InferenceWork.FromString(data)
        except DecodeError as error:
            log.warning("work undecodable", deployment=lane.deployment, error=str(error))
            self.on_poison(data, f"not an InferenceWork: {error}")
            lane.freed()
            return
        known = self._attempts.get(work.request_id)
        if known is not None:
            if known.work.attempt >= work.attempt:
                lane.freed()
                return
            known.give_up(Failure(FailureKind.CANCELLED, "a newer attempt has begun"))
        attempt = Attempt(work, lane, time.monotonic())
        self._attempts[work.request_id] = attempt
        self._busy.set()
        attempt.task = asyncio.create_task(self._carry_out(attempt))

    def cancel(self, request_id: bytes, attempt_number: int) -> None:
        """Nobody waits for this attempt or an older one any more."""
        attempt = self._attempts.get(request_id)
        if attempt is not None and attempt.work.attempt <= attempt_number:
            attempt.give_up(Failure(FailureKind.CANCELLED, "cancelled by the gateway"))

    def hand_back(
        self, reason: str, lane: Lane | None = None, *, told_to_leave: bool = False
    ) -> int:
        """Fail everything in hand (of `lane`) such that others may try; returns how many."""
        mine = [
            each
            for each in self._attempts.values()
            if (lane is None or each.lane is lane) and each.given_up is None
        ]
        for attempt in mine:
            attempt.give_up(Failure(FailureKind.UNAVAILABLE, reason, told_to_leave))
        self.handed_back_count += len(mine)
        return len(mine)

    def engine_lost(self, reason: str, *, by_loading: bool = False) -> int:
        """As `hand_back`, and say of those that Triton had that it died with them.

        Not if it was `by_loading` a model that was new to it, which is to blame then: requests are
        given up after their second Triton.
        """
        for attempt in self._attempts.values():
            suspect = attempt.called_s and not by_loading
            kind = FailureKind.ENGINE_LOST if suspect else FailureKind.UNAVAILABLE
            attempt.give_up(Failure(kind, reason))
        return len(self._attempts)

    def longest_in_hand(self, lane: Lane) -> float:
        """When the oldest work of `lane` was taken, by time.monotonic(); infinite for none."""
        mine = (each.picked_s for each in self._attempts.values() if each.lane is lane)
        return min(mine, default=math.inf)

    async def show_signs_of_life(self) -> None:
        """Tell gateways, for ever, that unanswered work is still being worked on."""
        while True:
            if not self._attempts:
                self._busy.clear()
            await self._busy.wait()
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            for attempt in list(self._attempts.values()):
                if attempt.lane.silent:
                    attempt.lane.failed()
                if _due(attempt, now_s):
                    attempt.last_sign_s = now_s
                    self._say(attempt.work, frames.started(attempt.work, self.node))

    async def _carry_out(self, attempt: Attempt) -> None:
        attempt.begun = True
        failure = attempt.given_up
        try:
            failure = failure or await self._through_triton(attempt)
        except asyncio.CancelledError:
            if attempt.given_up is None:
                raise
            failure = attempt.given_up
        except Exception as error:  # a bug must not lose the slot or the answer
            log.exception("work failed by a bug", deployment=attempt.lane.deployment)
            failure = Failure(FailureKind.INTERNAL, f"node agent: {type(error).__name__}")
        finally:
            if self._attempts.get(attempt.work.request_id) is attempt:
                del self._attempts[attempt.work.request_id]
            attempt.lane.freed()
        if failure is None:
            self.finished_count += 1
        else:
            self.failed_count += 1
            self.failed_by_kind[failure.kind] += 1
            self._account_for(attempt, finished=False)
            self._say(attempt.work, frames.failed(attempt.work, self.node, failure))
        if failure is not None and failure.kind is FailureKind.ENGINE_LOST:
            self._bury_if_blamed(attempt.work, failure)

    def _bury_if_blamed(self, work: work_pb2.InferenceWork, failure: Failure) -> None:
        """Keep what Triton died of twice, for people to look at; the gateway gives it up."""
        if work.engine_losses:
            reason = f"a Triton was lost again with this request in it: {failure.reason}"
            self.on_poison(work.SerializeToString(), reason)

    async def _through_triton(self, attempt: Attempt) -> Failure | None:
        if not attempt.work.engine_losses:
            return await self._call_triton(attempt)
        turn = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TURN_WITHIN_S):
                turn = await self._suspect.acquire()
        try:
            return await self._call_triton(attempt)
        finally:
            if turn:
                self._suspect.release()

    async def _call_triton(self, attempt: Attempt) -> Failure | None:
        """Answer the attempt, or return why it failed."""
        work, lane = attempt.work, attempt.lane
        timeout_s = work.deadline_unix_ms / 1000 - self.unix_s()
        if timeout_s <= 0.0:
            return Failure(FailureKind.DEADLINE_EXCEEDED, "the deadline passed before the work")
        if not lane.loaded:
            return Failure(FailureKind.UNAVAILABLE, f"{lane.deployment} is being loaded again")
        trace = self.trace(work) if work.traceparent else None
        traceparent = "" if trace is None else trace.traceparent
        self._begin_call(attempt)
        failure: Failure | None = None
        try:
            if work.stream:
                failure = await self._stream(attempt, timeout_s, traceparent)
            else:
                failure = await self._unary(attempt, timeout_s, traceparent)
        except TritonRefused as error:
            failure = judge(error.code, error.reason, loaded=lane.loaded)
            if failure.kind in _SUSPICIOUS:
                lane.failed()
            if may_be_a_crash(error.code, error.reason):
                await asyncio.sleep(CRASH_TOLD_WITHIN_S)  # `engine_lost` ends it
        except asyncio.CancelledError:
            failure = attempt.given_up
            raise
        finally:
            self._end_call(attempt)
            if trace is not None:
                trace.ended(failure, attempt.tokens)
        return failure

    async def _unary(self, attempt: Attempt, timeout_s: float, traceparent: str) -> Failure | None:
        work, lane = attempt.work, attempt.lane
        # What may have killed a Triton is tried beside no other.
        if lane.infer_merged is None or work.engine_losses:
            response = await lane.triton.infer(work.payload, timeout_s, traceparent)
        else:
            again = functools.partial(self._begin_again, attempt)
            response = await lane.infer_merged(work.payload, timeout_s, traceparent, again)
        self._end_call(attempt)
        if len(response) > MAX_FRAME_PAYLOAD_BYTES:
            return _too_large(len(response))
        if lane.count_tokens is not None:
            attempt.tokens.add(*lane.count_tokens(response))
        self._finish(attempt, response)
        return None

    async def _stream(self, attempt: Attempt, timeout_s: float, traceparent: str) -> Failure | None:
        work, lane = attempt.work, attempt.lane
        responses = lane.triton.stream(work.payload, timeout_s, traceparent)
        async with contextlib.aclosing(responses):
            async for response in responses:
                if len(response) > MAX_FRAME_PAYLOAD_BYTES:
                    return _too_large(len(response))
                self._pass_on(attempt, response)
        self._end_call(attempt)
        self._finish(attempt, b"")
        return None

    def _pass_on(self, attempt: Attempt, response: bytes) -> None:
        """Send one response of a stream."""
        if attempt.lane.count_tokens is not None:
            attempt.tokens.add(*attempt.lane.count_tokens(response))
        now_s = time.monotonic()
        frame = frames.chunk(
            attempt.work,
            self.node,
            sequence=attempt.chunk_count,
            payload=response,
            usage=_usage(attempt.tokens),
            compute_us=max(1, _microseconds(now_s - attempt.called_s)),
        )
        attempt.chunk_count += 1
        attempt.lane.answered()
        attempt.last_sign_s = now_s
        self._say(attempt.work, frame)

    def _finish(self, attempt: Attempt, payload: bytes) -> None:
        attempt.lane.answered()
        outcome = work_pb2.WorkFinished(
            payload=payload,
            chunk_count=attempt.chunk_count,
            usage=_usage(attempt.tokens),
            timings=work_pb2.WorkTimings(
                queue_us=_microseconds(attempt.called_s - attempt.picked_s),
                compute_us=attempt.compute_us,
                energy_mj=attempt.energy_mj,
                energy_measured=self.energy.measured,
            ),
        )
        # First: whoever kills us in between costs a repetition, not the record of an answer.
        self._account_for(attempt, finished=True)
        self._say(attempt.work, frames.finished(attempt.work, self.node, outcome))

    def _begin_call(self, attempt: Attempt) -> None:
        attempt.called_s = time.monotonic()
        attempt.energy_level = self.energy.began()

    def _begin_again(self, attempt: Attempt) -> None:
        """What it took until now is not the request's doing: it counts as waiting."""
        self.energy.ended(attempt.energy_level)
        self._begin_call(attempt)

    def _end_call(self, attempt: Attempt) -> None:
        """Take the timings; only the first call of an attempt's end counts."""
        if attempt.compute_us:
            return
        now_s = time.monotonic()
        attempt.compute_us = max(1, _microseconds(now_s - attempt.called_s))
        attempt.energy_mj = self.energy.ended(attempt.energy_level)

    def _account_for(self, attempt: Attempt, *, finished: bool) -> None:
        if attempt.accounted or not attempt.called_s:
            return
        attempt.accounted, work = True, attempt.work
        queue_us = _microseconds(attempt.called_s - attempt.picked_s)
        self.compute_us += attempt.compute_us
        self.queue_us += queue_us
        self.on_measured(
            status_pb2.WorkMeasured(
                request_id=work.request_id,
                attempt=work.attempt,
                tenant_id=work.tenant_id,
                deployment=work.deployment,
                finished=finished,
                input_tokens=attempt.tokens.input_tokens,
                output_tokens=attempt.tokens.output_tokens,
                queue_us=queue_us,
                compute_us=attempt.compute_us,
                energy_mj=attempt.energy_mj,
                energy_measured=self.energy.measured,
                ended_unix_ms=int(self.unix_s() * 1000),
            )
        )

    def _say(self, work: work_pb2.InferenceWork, frame: bytes) -> None:
        try:
            self.publish(work.reply_subject.encode(), frame)
        except Exception as error:  # noqa: BLE001  # the gateway notices silence and tries again
            log.warning("frame not sent", subject=work.reply_subject, error=repr(error))


def _due(attempt: Attempt, now_s: float) -> bool:
    if attempt.last_sign_s:
        return now_s - attempt.last_sign_s >= SIGN_INTERVAL_S
    return now_s - attempt.picked_s >= FIRST_SIGN_AFTER_S


def _too_large(size_bytes: int) -> Failure:
    return Failure(
        FailureKind.TOO_LARGE,
        f"the answer is {size_bytes} bytes, more than the {MAX_FRAME_PAYLOAD_BYTES} that fit",
    )


def _usage(tokens: TokenCount) -> work_pb2.WorkUsage:
    return work_pb2.WorkUsage(
        input_tokens=tokens.input_tokens,
        output_tokens=tokens.output_tokens,
        cached_tokens=tokens.cached_tokens,
    )


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)
