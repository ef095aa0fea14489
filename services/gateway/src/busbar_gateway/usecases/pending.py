"""One dispatched request: what nodes say about it, kept until somebody asks."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from busbar_contracts.node.v1.work_pb2 import FailureKind, WorkChunk, WorkFrame
from opentelemetry.trace import Span

from busbar_gateway.domain.attempts import Attempts, Frame
from busbar_gateway.domain.failures import DeadlineExceeded, RateLimited, Unavailable
from busbar_gateway.domain.versions import Trial
from busbar_gateway.usecases.calls import InferenceCall

BUFFERED_CHUNKS_MAX = 4096
BUFFERED_BYTES_MAX = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NotPublished:
    """The stream did not take the work; nobody works on it as far as is known."""

    reason: str
    region: str = ""
    """Whose stream it is; empty where it is our own link that failed."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt is lost: silence, or the stream that held it is gone."""

    reason: str
    unheard: bool = False
    """Whether the node that took it never said a word about it."""
    stranded: bool = False
    """Whether nobody fell silent: what it waits for takes no work any more."""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The attempt waits in a region where nobody takes it, and is of the past."""

    region: str


Outcome = WorkFrame | NotPublished | NotTaken | Lost | RateLimited | Unavailable | DeadlineExceeded
"""How an attempt ended. A WorkFrame is a `finished` or a `failed` one."""


@dataclass(slots=True, eq=False)
class Pending:
    """A request between its first publish and its last frame. Not thread-safe, like all here."""

    call: InferenceCall
    streamed: bool
    loop: asyncio.AbstractEventLoop
    attempts: Attempts = field(default_factory=Attempts)
    region: str = ""
    track: str = ""
    """Queue that the current attempt is in: the deployment's, or that of its canary."""
    lost_in: str = ""
    """Region in which the last attempt fell silent or was not taken; others are tried first."""
    sequence: int = 0
    """Of the current attempt in its stream; 0 until it was acknowledged."""
    epoch: str = ""
    """Identifies the stream that took it: a stream made anew counts from 1 again."""
    outcome: Outcome | None = None
    chunks: deque[WorkChunk] = field(default_factory=deque[WorkChunk])
    buffered_bytes: int = 0
    expired: bool = False
    trial: Trial | None = None
    """Where it stands between two versions of its deployment; None where there is one."""
    publish_span: Span | None = None
    """Ends when the stream has acknowledged the first attempt."""
    _waiter: asyncio.Future[None] | None = None

    def begin(self, now: float) -> int:
        """Start the next attempt; what the last one left behind is dropped."""
        self.sequence = 0
        self.abandon()
        return self.attempts.begin(now)

    def abandon(self) -> None:
        """Let nothing count any more of what the current attempt has brought."""
        self.outcome = None
        self.chunks.clear()
        self.buffered_bytes = 0

    def acknowledged(self, sequence: int) -> None:
        """The stream has taken the current attempt."""
        self.sequence = sequence
        self.published()

    def published(self) -> None:
        """End the span of the publish, if there is one."""
        if self.publish_span is not None:
            self.publish_span.end()
            self.publish_span = None

    def end(self, outcome: Outcome) -> None:
        """Record how the current attempt ended; the first ending counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._wake()

    def expire(self) -> None:
        """The deadline has passed."""
        self.expired = True
        self.end(DeadlineExceeded("the deadline passed before the answer was complete"))

    def take(self, frame: WorkFrame, kind: str, now: float) -> Frame:
        """Let the frame count if it does; return the verdict."""
        chunk = frame.chunk if kind == "chunk" else None
        sequence = chunk.sequence if chunk is not None else None
        verdict = self.attempts.frame(frame.attempt, frame.node, now, sequence)
        if verdict is Frame.COUNTS and self.outcome is None:
            if chunk is not None:
                self._buffer(chunk)
            elif kind in {"finished", "failed"}:
                self._finish(frame, kind)
        elif verdict is Frame.GAP:
            self.end(Lost("a part of the answer was lost on the way"))
        return verdict

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for a chunk or the end."""
        return self._waiter is not None

    async def progress(self) -> None:
        """Wait until there is a chunk or the attempt has ended."""
        if self.outcome is not None or self.chunks:
            return
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def next_chunk(self) -> WorkChunk:
        """Take the oldest chunk for delivery; from now on another attempt can only go on."""
        self.attempts.handed_out()
        chunk = self.chunks.popleft()
        self.buffered_bytes -= len(chunk.payload)
        return chunk

    def _buffer(self, chunk: WorkChunk) -> None:
        self.buffered_bytes += len(chunk.payload)
        if len(self.chunks) >= BUFFERED_CHUNKS_MAX or self.buffered_bytes > BUFFERED_BYTES_MAX:
            self.end(Unavailable("the answer was not read as fast as it was made"))
            return
        self.chunks.append(chunk)
        self._wake()

    def _finish(self, frame: WorkFrame, kind: str) -> None:
        whole = not self.streamed or frame.finished.chunk_count == self.attempts.next_chunk
        if kind == "finished" and not whole:
            self.end(Lost("the end of the answer was lost on the way"))
        else:
            self.end(frame)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


RETRYABLE = frozenset(
    {
        FailureKind.FAILURE_KIND_UNAVAILABLE,
        FailureKind.FAILURE_KIND_NOT_FOUND,
        FailureKind.FAILURE_KIND_CANCELLED,
        FailureKind.FAILURE_KIND_ENGINE_LOST,
        FailureKind.FAILURE_KIND_UNSPECIFIED,
    }
)
"""Kinds where another attempt may help. Not found and cancelled are a node's own troubles here:
the edge has checked the version, and what we cancel we do not wait for."""
