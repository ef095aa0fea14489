"""Getting one admitted request answered: publish, follow its frames, try again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time_ns
from typing import Protocol

import structlog
from busbar_contracts.node.v1.work_pb2 import (
    FailureKind,
    InferenceWork,
    WorkCancel,
    WorkChunk,
    WorkFinished,
    WorkFrame,
    WorkUsage,
)
from opentelemetry.trace import Span

from busbar_gateway.domain.attempts import Frame
from busbar_gateway.domain.failures import (
    AnswerTooLarge,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    RateLimited,
    Unavailable,
)
from busbar_gateway.domain.regions import Outstanding
from busbar_gateway.domain.routes import Route
from busbar_gateway.domain.versions import named
from busbar_gateway.usecases.calls import Chunk, InferenceCall
from busbar_gateway.usecases.pending import RETRYABLE, Lost, NotPublished, NotTaken, Pending
from busbar_gateway.usecases.trials import Trials, stranded
from busbar_gateway.usecases.troubles import NodeTroubles

log = structlog.get_logger()

_REPUBLISH_PAUSES_S = (0.05, 0.1, 0.2, 0.4)
_CANCEL_AGAIN_S = 0.5
_RECENT_CANCELS_MAX = 4096


class WorkBus(Protocol):
    """What dispatch needs from the bus."""

    @property
    def connected(self) -> bool:
        """Whether the server can be reached."""
        ...

    def epoch(self, region: str) -> str:
        """Identifies the region's stream as last seen; empty when it was never seen."""
        ...

    def publish_work(
        self,
        region: str,
        deployment: str,
        work: bytes,
        acknowledged: Callable[[int | Exception], None],
    ) -> None:
        """Publish once; `acknowledged` gets the stream sequence, Unavailable or RateLimited."""
        ...

    def publish_cancel(self, node: str, cancel: bytes) -> None:
        """Tell a node to stop; best effort."""
        ...


class Dispatcher:
    """All requests that this gateway has out."""

    def __init__(
        self,
        bus: WorkBus,
        *,
        reply_subject: str,
        region: str,
        nearest: Sequence[str] = (),
        shares: Callable[[str], Mapping[str, float]],
        current_route: Callable[[str], Route | None],
        redispatched: Callable[[str, str], None],
        readable: Callable[[bytes], bool],
        unix_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._bus = bus
        self._reply_subject = reply_subject
        self._region = region
        self._outstanding = Outstanding(region, nearest)
        self._shares = shares
        self._current_route = current_route
        self._redispatched = redispatched
        self._unix_ns = unix_ns
        self._loop = asyncio.get_running_loop()
        self._recent_cancels: dict[tuple[bytes, int], float] = {}
        self.pending: dict[bytes, Pending] = {}
        self.troubles = NodeTroubles()
        self.trials = Trials(readable, current_route)

    def open(self, call: InferenceCall, *, streamed: bool) -> Dispatch:
        """Start to track a request; the caller must close what this returns."""
        pending = Pending(call, streamed, self._loop)
        self.pending[call.request_id] = pending
        return Dispatch(self, pending)

    def on_frame(self, frame: WorkFrame) -> None:
        """Take a frame from the inbox; a node that nobody waits for is told to stop."""
        kind = frame.WhichOneof("frame")
        if kind is None:
            log.error("frame without content", node=frame.node)
            return
        now = monotonic()
        pending = self.pending.get(frame.request_id)
        goes_on = pending is not None and pending.outcome is None
        if pending is not None and pending.take(frame, kind, now) is not Frame.OBSOLETE:
            if goes_on and kind != "chunk":  # else it may have been moved to another region
                self._outstanding.heard(pending.track, pending.region, now)
            if kind != "started":
                self.troubles.spoke(frame.node)
            return
        if kind not in {"finished", "failed"}:
            self._cancel_stray(frame, now)

    def cancel(self, node: str, request_id: bytes, attempt: int) -> None:
        """Tell a node that nobody waits for the request any more."""
        message = WorkCancel(request_id=request_id, attempt=attempt)
        self._bus.publish_cancel(node, message.SerializeToString())

    def doubt(self, node: str, pending: Pending) -> None:
        """A node's answer cannot be read: count it, and have the node check its model."""
        self.troubles.garbled(node)
        message = WorkCancel(garbled_deployment=pending.call.route.deployment)
        self._bus.publish_cancel(node, message.SerializeToString())

    def publish(self, pending: Pending, traceparent: str) -> None:
        """Publish the next attempt; its outcome says if that failed."""
        call, now = pending.call, monotonic()
        if not self._bus.connected:
            pending.end(NotPublished("the bus is away"))
            return
        route = self._current_route(call.route.deployment) or call.route
        canary, track, targets = None, route.deployment, route.targets
        if route.canary is not None or pending.trial is not None:
            canary = self.trials.assign(pending, route)
        if canary is not None:
            track, targets = canary.track, canary.targets
        before = pending.region
        self._move(pending, "")  # its slot there is free for it, too
        region = self._outstanding.choose(
            track, targets, self._shares(route.deployment), now, avoiding=pending.lost_in
        )
        self._move(pending, region or before or self._region, track)
        attempt = pending.begin(now)
        pending.epoch = self._bus.epoch(pending.region)
        work = InferenceWork(
            request_id=call.request_id,
            attempt=attempt,
            tenant_id=call.caller.tenant_id,
            deployment=track,
            deadline_unix_ms=self._unix_ns() // 1_000_000 + round((call.deadline - now) * 1000),
            reply_subject=self._reply_subject,
            traceparent=traceparent,
            stream=pending.streamed,
            payload=_payload(pending) if canary is None else named(_payload(pending), track),
            engine_losses=pending.attempts.engine_losses,
        )

        def acknowledged(result: int | Exception) -> None:
            if pending.attempts.current != attempt:
                return
            if isinstance(result, int):
                pending.acknowledged(result)
            elif isinstance(result, RateLimited):
                pending.end(result)
            else:
                region = pending.region if self._bus.connected else ""
                pending.end(NotPublished(str(result), region))

        self._bus.publish_work(pending.region, track, work.SerializeToString(), acknowledged)

    def routes_changed(self) -> None:
        """Send on what waits for a version that takes no work any more."""
        self.trials.keep_to_routes()
        self._outstanding.forget_what_is_over(monotonic())
        for pending in list(self.pending.values()):
            if pending.trial is not None:
                route = self._current_route(pending.call.route.deployment)
                if stranded(pending, route):
                    gone = "its version takes no work any more"
                    pending.end(Lost(gone, unheard=True, stranded=True))

    def close(self, pending: Pending) -> None:
        """Stop to track the request; ends the work at the node when it goes on."""
        self.pending.pop(pending.call.request_id, None)
        self._move(pending, "")
        attempts = pending.attempts
        if not isinstance(pending.outcome, WorkFrame) and attempts.node:
            self.cancel(attempts.node, pending.call.request_id, attempts.current)

    def expire(self, now: float) -> None:
        """End what has passed its deadline."""
        for pending in list(self.pending.values()):
            if pending.call.deadline <= now:
                pending.expire()

    def withdraw(self, pending: Pending, now: float, *, seen: bool) -> None:
        """Nobody takes the current attempt where it waits: send the request elsewhere.

        Where that can be. What waits there stays: whoever takes it is told to stop. `seen` is
        False when the region's stream cannot be seen, and so not whether it waits there.
        """
        call = pending.call
        if self.pending.get(call.request_id) is not pending or pending.outcome is not None:
            return
        route = self._current_route(call.route.deployment) or call.route
        targets = route.targets
        if pending.trial is not None and pending.trial.canary is not None:
            targets = route.canary.targets if route.canary else ()
        waits_in, track, shares = pending.region, pending.track, self._shares(route.deployment)
        elsewhere = self._outstanding.elsewhere(track, targets, shares, waits_in, now)
        if elsewhere is None:
            return
        if seen:
            self._outstanding.not_taken(track, waits_in, now)
        else:
            self._outstanding.not_reached(track, waits_in, now)
        pending.lost_in = waits_in
        self._move(pending, elsewhere, track)  # so that no other one is sent there for its slot
        pending.end(NotTaken(waits_in))

    def avoid(self, pending: Pending, region: str) -> None:
        """The region's stream did not take it: try others first."""
        pending.lost_in = region
        self._outstanding.not_reached(pending.track, region, monotonic())

    def note_redispatch(self, pending: Pending, cause: str) -> None:
        """Count that a request goes out again."""
        self._redispatched(pending.call.route.deployment, cause)

    def _move(self, pending: Pending, region: str, track: str = "") -> None:
        if (pending.region, pending.track) == (region, track):
            return
        if pending.region:
            self._outstanding.back(pending.track, pending.region)
        if region:
            self._outstanding.sent(track, region)
        pending.region, pending.track = region, track

    def _cancel_stray(self, frame: WorkFrame, now: float) -> None:
        key = (frame.request_id, frame.attempt)
        if now - self._recent_cancels.get(key, -_CANCEL_AGAIN_S) < _CANCEL_AGAIN_S:
            return
        if len(self._recent_cancels) >= _RECENT_CANCELS_MAX:
            self._recent_cancels.clear()
        self._recent_cancels[key] = now
        self.cancel(frame.node, frame.request_id, frame.attempt)


class Dispatch:
    """One request on its way, from first publish to last frame."""

    def __init__(self, dispatcher: Dispatcher, pending: Pending) -> None:
        self._dispatcher = dispatcher
        self._pending = pending
        self._traceparent = ""
        self._publishes_failed = 0

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
        if resumable is None:
            counted = usage.input_tokens, usage.output_tokens
        else:
            counted = resumable.count(usage.input_tokens, usage.output_tokens)
        payload, trial = chunk.payload, self._pending.trial
        if trial is not None and trial.canary is not None:
            payload = named(payload, self._pending.call.route.deployment)
        return Chunk(payload, *counted, chunk.compute_us)

    def _deliverable(self) -> bool:
        """Chunks before a good end, or of an attempt that goes on, may be handed out.

        Also those before a bad end, where another attempt can go on from them. None when the
        time is over.
        """
        outcome = self._pending.outcome
        if self._pending.expired:
            return False
        if outcome is None or self._pending.call.resumable is not None:
            return True
        return isinstance(outcome, WorkFrame) and outcome.HasField("finished")

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
                    input_tokens=resumable.input_tokens, output_tokens=resumable.output_tokens
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
        counted = resumable.count(finished.usage.input_tokens, finished.usage.output_tokens)
        if resumable.falls_short and self._pending.attempts.delivering:
            await self._again(0.0, "unfinished")
            return None
        finished.usage.input_tokens, finished.usage.output_tokens = counted
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


def _payload(pending: Pending) -> bytes:
    """What the next attempt gets: the request, or what is left of it."""
    resumable = pending.call.resumable
    if resumable is None or not pending.attempts.delivering:
        return pending.call.payload
    return resumable.go_on()


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
