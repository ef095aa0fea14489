"""Getting one admitted request answered: publish, follow its frames, try again."""

from __future__ import annotations

import asyncio
from time import monotonic

import structlog
from busbar_contracts.node.v1.work_pb2 import (
    FailureKind,
    WorkChunk,
    WorkFinished,
    WorkFrame,
    WorkUsage,
)
from opentelemetry.trace import Span

from busbar_gateway.domain.failures import (
    AnswerTooLarge,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    Unavailable,
)
from busbar_gateway.domain.versions import named
from busbar_gateway.usecases.calls import Chunk, InferenceCall
from busbar_gateway.usecases.dispatcher import Dispatcher
from busbar_gateway.usecases.pending import RETRYABLE, Lost, NotPublished, NotTaken

log = structlog.get_logger()

_REPUBLISH_PAUSES_S = (0.05, 0.1, 0.2, 0.4)


class Dispatch:
    """One request on its way, from first publish to last frame. The caller must close it."""

    def __init__(self, dispatcher: Dispatcher, call: InferenceCall, *, streamed: bool) -> None:
        self._dispatcher = dispatcher
        self._pending = dispatcher.open(call, streamed=streamed)
        self._traceparent = ""
        self._publishes_failed = 0
        self._garbled_by = ""

    @property
    def node(self) -> str:
        """Node of the current attempt, as far as known."""
        return self._pending.attempts.node

    @property
    def attempt(self) -> int:
        """Number of the current attempt."""
        return self._pending.attempts.current

    @property
    def delivering(self) -> bool:
        """Whether a chunk was handed out."""
        return self._pending.attempts.delivering

    def send(self, span: Span | None, traceparent: str) -> None:
        """Publish the first attempt; `span` ends when the stream has acknowledged it."""
        self._traceparent = traceparent
        self._pending.publish_span = span
        self._pending.attempts.tries = 1
        self._dispatcher.publish(self._pending, traceparent)

    async def finished(self) -> WorkFinished:
        """Wait for the end, through as many attempts as are allowed.

        Raises what the customer is to be told when there is no answer.
        """
        while True:
            await self._pending.progress()
            finished = await self._judge()
            if finished is not None:
                return finished

    async def next_chunk(self) -> Chunk | WorkFinished:
        """Wait for the next chunk, or the end after the last one. Raises as `finished` does."""
        while True:
            await self._pending.progress()
            if self._pending.chunks and self._deliverable():
                if self._dispatcher.trials.begins(self._pending):
                    return self._counted(self._pending.next_chunk())
                self._dispatcher.cancel(self.node, self._pending.call.request_id, self.attempt)
                await self._unreadable()
                continue
            finished = await self._judge()
            if finished is not None:
                return finished

    def close(self) -> None:
        """Stop; ends the work at the node when it goes on."""
        self._pending.published()
        self._dispatcher.close(self._pending)

    def _counted(self, chunk: WorkChunk) -> Chunk:
        usage, resumable = chunk.usage, self._pending.call.resumable
        counted, cached = (usage.input_tokens, usage.output_tokens), usage.cached_tokens
        if resumable is not None:
            counted = resumable.count(*counted, cached)
            cached = resumable.cached_tokens
        payload, trial = chunk.payload, self._pending.trial
        if trial is not None and trial.canary is not None:
            payload = named(payload, self._pending.call.route.deployment)
        return Chunk(payload, *counted, chunk.compute_us, cached)

    def _deliverable(self) -> bool:
        """Chunks before a good end, or of an attempt that goes on, may be handed out.

        Also those before a bad end, where another attempt can go on from them, or none is made:
        it must not depend on the moment whether they are. None when the time is over.
        """
        outcome = self._pending.outcome
        if self._pending.expired:
            return False
        if outcome is None or self._pending.call.resumable is not None:
            return True
        if not isinstance(outcome, WorkFrame):
            return False
        if outcome.HasField("finished"):
            return True
        return self._pending.trial is None and outcome.failed.kind not in RETRYABLE

    async def _judge(self) -> WorkFinished | None:
        pending, outcome = self._pending, self._pending.outcome
        if pending.expired:
            raise DeadlineExceeded("the deadline passed before the answer was complete")
        if outcome is None:
            return None
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, NotPublished | NotTaken):
            await self._publish_again(outcome)
            return None
        if isinstance(outcome, WorkFrame) and outcome.HasField("finished"):
            if not self._dispatcher.trials.accepts(pending, outcome.finished):
                await self._unreadable()
                return None
            return await self._finish(outcome.finished)
        if (resumable := pending.call.resumable) is not None and resumable.complete:
            return WorkFinished(
                usage=WorkUsage(
                    input_tokens=resumable.input_tokens,
                    output_tokens=resumable.output_tokens,
                    cached_tokens=resumable.cached_tokens,
                )
            )
        await self._try_again(outcome)
        return None

    async def _finish(self, finished: WorkFinished) -> WorkFinished | None:
        """Count the whole answer; None when another attempt must make up for what is missing."""
        if not await self._read(finished):
            return None
        resumable = self._pending.call.resumable
        if resumable is None:
            return finished
        usage = finished.usage
        counted = resumable.count(usage.input_tokens, usage.output_tokens, usage.cached_tokens)
        if resumable.falls_short and self._pending.attempts.delivering:
            await self._again(0.0, "unfinished")
            return None
        usage.input_tokens, usage.output_tokens = counted
        usage.cached_tokens = resumable.cached_tokens
        return finished

    async def _publish_again(self, outcome: NotPublished | NotTaken) -> None:
        """Nobody has worked on it: that counts as no try."""
        request_id = self._pending.call.request_id.hex()
        if isinstance(outcome, NotTaken):
            regions = {"waited_in": outcome.region, "region": self._pending.region}
            log.info("request goes to another region", request_id=request_id, **regions)
            await self._again(0.0, "not_taken")
            return
        pause_s = _REPUBLISH_PAUSES_S[min(self._publishes_failed, len(_REPUBLISH_PAUSES_S) - 1)]
        self._publishes_failed += 1
        if outcome.region:
            self._dispatcher.avoid(self._pending, outcome.region)
        log.info("work not published", request_id=request_id, reason=outcome.reason)
        await self._again(pause_s, "unpublished")

    async def _try_again(self, outcome: WorkFrame | Lost) -> None:
        pending = self._pending
        spared = self._dispatcher.trials.spares(pending, outcome)
        if isinstance(outcome, WorkFrame):
            failed = outcome.failed
            if failed.kind not in RETRYABLE and not spared:
                raise _failure(failed.kind, failed.reason, resumed=pending.attempts.resumptions > 0)
            reason = f"{outcome.node}: {failed.reason}"
            if failed.kind == FailureKind.FAILURE_KIND_ENGINE_LOST:
                self._count_engine_loss(reason)
        else:
            reason = outcome.reason
            if not outcome.stranded:
                pending.lost_in = pending.region
            if self.node:
                self._dispatcher.troubles.lost(self.node)
                self._dispatcher.cancel(self.node, pending.call.request_id, self.attempt)
            elif outcome.unheard and not outcome.stranded:
                published = pending.attempts.published
                self._dispatcher.troubles.swallowed(pending.track, pending.region, published)
        if spared:
            await self._go_to_the_other_version(reason)
            return
        if not pending.attempts.may_retry(resumable=pending.call.resumable is not None):
            log.warning("request given up", request_id=pending.call.request_id.hex(), reason=reason)
            raise Unavailable(
                "the answer was interrupted; please try again"
                if self.delivering
                else "no node could answer; please try again"
            )
        pause_s = pending.attempts.backoff_s()
        pending.attempts.tried(unheard=isinstance(outcome, Lost) and outcome.unheard)
        log.info("request goes out again", request_id=pending.call.request_id.hex(), reason=reason)
        await self._again(pause_s, "failed" if isinstance(outcome, WorkFrame) else "lost")

    async def _read(self, finished: WorkFinished) -> bool:
        """Whether the edge can read the answer; else another attempt is on its way, if it may."""
        pending = self._pending
        if pending.call.read is None or pending.call.canary:
            return True
        try:
            pending.call.read(finished.payload)
        except ModelFailed:
            if self._garbled_by not in {"", self.node}:
                raise  # two nodes answer so: it is the request, and nothing is wrong with them
            self._garbled_by = self.node
            self._dispatcher.doubt(self.node, pending)
            if not pending.attempts.may_retry(resumable=False):
                raise
        else:
            return True
        pause_s = pending.attempts.backoff_s()
        pending.attempts.tried(unheard=False)
        await self._again(pause_s, "garbled")
        return False

    async def _unreadable(self) -> None:
        """The canary's answer is none."""
        if not self._dispatcher.trials.other_serves(self._pending):
            raise ModelFailed("the model's answer cannot be read; it was not charged")
        await self._go_to_the_other_version(f"{self.node}: the answer is none")

    async def _go_to_the_other_version(self, reason: str) -> None:
        request_id = self._pending.call.request_id.hex()
        log.info("request goes to the version that serves", request_id=request_id, reason=reason)
        await self._again(0.0, "canary")

    def _count_engine_loss(self, reason: str) -> None:
        attempts, request_id = self._pending.attempts, self._pending.call.request_id.hex()
        attempts.engine_losses += 1
        if attempts.blamed():
            log.error("request given up: engines die of it", request_id=request_id, reason=reason)
            raise ModelFailed("the model stopped twice on this request; it was not charged")

    async def _again(self, pause_s: float, cause: str) -> None:
        pending = self._pending
        await asyncio.sleep(max(0.0, min(pause_s, pending.call.deadline - monotonic())))
        if monotonic() >= pending.call.deadline:
            pending.expire()
        if pending.expired:
            return
        self._dispatcher.note_redispatch(pending, cause)
        pending.abandon()  # also where the next attempt cannot begin yet
        self._dispatcher.publish(pending, self._traceparent)


def _failure(kind: int, reason: str, *, resumed: bool) -> Exception:
    if kind == FailureKind.FAILURE_KIND_REJECTED and resumed:
        log.error("model refused to go on with its own answer", reason=reason)
        return Unavailable("the answer was interrupted; please try again")
    if kind == FailureKind.FAILURE_KIND_REJECTED:
        return InvalidInput(reason or "the model refused the input")
    if kind == FailureKind.FAILURE_KIND_DEADLINE_EXCEEDED:
        return DeadlineExceeded("the deadline passed while the model worked")
    if kind == FailureKind.FAILURE_KIND_TOO_LARGE:
        return AnswerTooLarge(reason or "the answer is larger than a message may be")
    log.error("model failed", reason=reason)
    return ModelFailed("the model failed on this request; it was not charged")
