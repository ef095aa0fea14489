"""Several callers' requests for one batchable model in one call of Triton."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from busbar_errors import BusbarError

from busbar_node_agent.domain.merging import Ask, Batching, groups
from busbar_node_agent.domain.verdicts import is_too_large, would_be_each_ones
from busbar_node_agent.usecases.lane import Inference, TritonRefused

log = structlog.get_logger()

REST_TURNS = 8
"""So many turns go unmerged after a call that each caller had to repeat: who sends again and again
what the model refuses has others' work done twice in one turn of so many at most."""

_TICK_S = 0.002  # the event loop counts milliseconds


def _nothing() -> None:
    pass


class Unsplittable(BusbarError):
    """An answer does not say which part of it is whose."""


class Batches(Protocol):
    """What is in requests and answers; adapters.batches.Batches."""

    def read(self, data: bytes) -> Ask | None: ...
    def join(self, asks: Sequence[Ask]) -> bytes: ...
    def split(self, data: bytes, asks: Sequence[Ask]) -> list[bytes]: ...


@dataclass(slots=True, eq=False)
class _Caller:
    """One who waits for an answer, or for None: then it has to ask alone."""

    request: bytes
    deadline_s: float
    """By time.monotonic()."""
    answer: asyncio.Future[bytes | None]
    group: _Group | None = None


@dataclass(slots=True, eq=False)
class Merger:
    """Gathers the requests of one turn of the event loop and sends each group of them as one."""

    triton: Inference
    batches: Batches
    batching: Batching
    model: str
    given_up: bool = False
    """Whether an answer of the model could not be split: not tried again in this load of it."""
    _callers: list[_Caller] = field(default_factory=list[_Caller])
    _resting_turns: int = 0

    async def infer(
        self,
        request: bytes,
        timeout_s: float,
        traceparent: str,
        again: Callable[[], None] = _nothing,
    ) -> bytes:
        """See usecases.lane.Inference. What is traced goes alone, so that its spans are its own.

        Calls `again` before Triton is asked again, alone: what the group's call took is nobody's.
        """
        if traceparent or self.given_up:
            return await self.triton.infer(request, timeout_s, traceparent)
        loop = asyncio.get_running_loop()
        caller = _Caller(request, time.monotonic() + timeout_s, loop.create_future())
        if not self._callers:
            loop.call_soon(self._gather)
        self._callers.append(caller)
        try:
            answer = await caller.answer
        except (TritonRefused, asyncio.CancelledError):
            if caller.group is not None:
                caller.group.left()
            raise
        if answer is not None:
            return answer
        left_s = caller.deadline_s - time.monotonic()
        if left_s <= 0.0:
            raise _expired()
        if caller.group is not None:
            again()
        return await self.triton.infer(request, left_s, "")

    def unsplittable(self, reason: str) -> None:
        """Merge no more."""
        if not self.given_up:
            log.warning("requests are not merged", deployment=self.model, reason=reason)
        self.given_up = True

    def rest(self) -> None:
        """Do not merge for a while."""
        self._resting_turns = REST_TURNS

    def _gather(self) -> None:
        callers = [each for each in self._callers if not each.answer.done()]
        self._callers = []
        if len(callers) > 1 and not self._resting_turns:
            try:
                callers = self._merged(callers)
            except Exception as error:  # a bug must leave nobody waiting
                log.exception("merging failed by a bug", deployment=self.model)
                self.unsplittable(repr(error))
        else:
            self._resting_turns = max(0, self._resting_turns - 1)
        _send_alone(callers)

    def _merged(self, callers: Sequence[_Caller]) -> list[_Caller]:
        """Send those that go together; returns who goes alone."""
        asks = [self.batches.read(each.request) for each in callers]
        alone: list[_Caller] = []
        for indices in groups(asks, self.batching):
            members = [callers[index] for index in indices]
            together = [ask for index in indices if (ask := asks[index]) is not None]
            if len(together) > 1:
                _Group(self, members, together).send(self.batches.join(together))
            else:
                alone += members
        return alone


class _Group:
    """Callers whose requests are with Triton as one."""

    def __init__(self, merger: Merger, callers: Sequence[_Caller], asks: Sequence[Ask]) -> None:
        self._merger, self._callers, self._asks = merger, callers, asks
        self._task: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def send(self, request: bytes) -> None:
        """Call Triton; each caller gets its answer, or is told to ask alone."""
        for caller in self._callers:
            caller.group = self
        self._task = asyncio.create_task(self._call(request))
        self._expire()

    def left(self) -> None:
        """Somebody waits no longer; when nobody does, Triton is told."""
        if self._task is not None and all(each.answer.done() for each in self._callers):
            self._task.cancel()

    async def _call(self, request: bytes) -> None:
        merger = self._merger
        until_s = max(each.deadline_s for each in self._callers)
        try:
            answer = await merger.triton.infer(request, until_s - time.monotonic(), "")
            self._give(merger.batches.split(answer, self._asks))
        except Unsplittable as error:
            merger.unsplittable(error.reason)
        except TritonRefused as error:
            self._refused(error)
        except Exception as error:  # as above
            log.exception("merging failed by a bug", deployment=merger.model)
            merger.unsplittable(repr(error))
        finally:
            if self._expiry is not None:
                self._expiry.cancel()
            _send_alone(self._callers)

    def _give(self, answers: Sequence[bytes]) -> None:
        for caller, answer in zip(self._callers, answers, strict=True):
            if not caller.answer.done():
                caller.answer.set_result(answer)

    def _refused(self, error: TritonRefused) -> None:
        """It may be the fault of one of them: who is alone finds out whose."""
        if would_be_each_ones(error.code, error.reason):
            for caller in self._callers:
                _refuse(caller, TritonRefused(error.code, error.reason))
        elif is_too_large(error.code, error.reason):
            self._merger.unsplittable(error.reason)
        else:
            self._merger.rest()

    def _expire(self) -> None:
        """Refuse who is out of time, and look again when the next one will be."""
        now_s = time.monotonic()
        for caller in self._callers:
            if caller.deadline_s <= now_s:
                _refuse(caller, _expired())
        waiting = [each.deadline_s for each in self._callers if not each.answer.done()]
        if waiting:
            delay_s = max(_TICK_S, min(waiting) - now_s)
            self._expiry = asyncio.get_running_loop().call_later(delay_s, self._expire)


def _send_alone(callers: Sequence[_Caller]) -> None:
    for caller in callers:
        if not caller.answer.done():
            caller.answer.set_result(None)


def _refuse(caller: _Caller, error: TritonRefused) -> None:
    if not caller.answer.done():
        caller.answer.set_exception(error)


def _expired() -> TritonRefused:
    return TritonRefused("DEADLINE_EXCEEDED", "Deadline Exceeded")
