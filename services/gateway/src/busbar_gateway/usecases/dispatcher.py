"""All requests that this gateway has out: where each goes, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time_ns
from typing import Protocol

import structlog
from busbar_contracts.node.v1.work_pb2 import InferenceWork, WorkCancel, WorkFrame

from busbar_gateway.domain.attempts import Frame
from busbar_gateway.domain.failures import RateLimited
from busbar_gateway.domain.regions import Outstanding
from busbar_gateway.domain.routes import Route
from busbar_gateway.domain.versions import named
from busbar_gateway.usecases.calls import InferenceCall
from busbar_gateway.usecases.pending import Lost, NotPublished, NotTaken, Pending
from busbar_gateway.usecases.trials import Trials, stranded
from busbar_gateway.usecases.troubles import NodeTroubles

log = structlog.get_logger()

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

    def open(self, call: InferenceCall, *, streamed: bool) -> Pending:
        """Start to track a request; the caller must close it."""
        pending = Pending(call, streamed, self._loop)
        self.pending[call.request_id] = pending
        return pending

    def on_frame(self, frame: WorkFrame) -> None:
        """Take a frame from the inbox; a node that nobody waits for is told to stop."""
        kind = frame.WhichOneof("frame")
        if kind is None:
            log.error("frame without content", node=frame.node)
            return
        now = monotonic()
        pending = self.pending.get(frame.request_id)
        self.troubles.heard(frame.node, "" if pending is None else pending.track, now)
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


def _payload(pending: Pending) -> bytes:
    """What the next attempt gets: the request, or what is left of it."""
    resumable = pending.call.resumable
    if resumable is None or not pending.attempts.delivering:
        return pending.call.payload
    return resumable.go_on()
