"""One replica: from its bundle in the object store to pulling work, and back."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
from busbar_contracts.node.v1 import events_pb2, status_pb2
from busbar_errors import BusbarError, Rejected
from busbar_messaging.topology import NAME_PATTERN
from google.protobuf.message import Message

from busbar_node_agent.domain.backoff import backoff_s
from busbar_node_agent.domain.credits import Credits
from busbar_node_agent.domain.desired import Assignment
from busbar_node_agent.domain.starting import given_up
from busbar_node_agent.domain.verdicts import load_failure
from busbar_node_agent.usecases.lane import Infer, Inference, Lane, TokenCounter, TritonRefused
from busbar_node_agent.usecases.supervise import Session, TritonSupervisor
from busbar_node_agent.usecases.work import WorkInHand

log = structlog.get_logger()

UNLOAD_TIMEOUT_S = 60.0
CONTROL_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 120.0
_GUARD_INTERVAL_S = 5.0
_GUARD_SOONEST_S = 1.7
_POLL_S = 0.1
_RETRY_FIRST_S, _RETRY_CAP_S = 1.0, 60.0
_CRASH_RETRY_FIRST_S, _CRASH_RETRY_CAP_S = 5.0, 900.0
_COMPLAINT_CHARS_MAX = 1_000
_LAG_S = 0.5
_LASTING_S = 60.0
"""What was ready for so long has not failed before, as far as anybody cares."""

FETCHING = status_pb2.REPLICA_STATE_FETCHING
LOADING = status_pb2.REPLICA_STATE_LOADING
WARMING = status_pb2.REPLICA_STATE_WARMING
READY = status_pb2.REPLICA_STATE_READY
DRAINING = status_pb2.REPLICA_STATE_DRAINING
FAILED = status_pb2.REPLICA_STATE_FAILED

_NAME = re.compile(NAME_PATTERN)

T = TypeVar("T")


class WarmUpFailed(BusbarError):
    """The model did not answer its warm-up as it should.

    `hung`: not at all; `busy`: it was refused by a Triton that has too much to do.
    """

    def __init__(self, reason: str, *, hung: bool = False, busy: bool = False) -> None:
        super().__init__(reason)
        self.hung = hung
        self.busy = busy


class _TritonGone(Exception):
    """The run of Triton ended under our hands."""


class Puller(Protocol):
    """Pulls a lane's work; adapters.puller.WorkPuller."""

    def start(self) -> None: ...
    async def stop(self) -> None: ...
    def adjust(self, slots: int, queue: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on this node's disk."""

    digest: str
    files: Mapping[str, Path]
    """Where each of its files lies, by its path in the bundle."""
    warm_up: Callable[[Any, str], Awaitable[None]]
    """Runs the warm-up of the model called so at that Triton; raises WarmUpFailed."""
    answers_within_s: float | None = None
    """Longest that the model says nothing while it has work; None: nobody can say."""
    checked_every_s: float | None = None
    """How often it is asked its warm-up question while it works; None: when something was odd."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What replicas share."""

    node: str
    supervisor: TritonSupervisor
    work: WorkInHand
    fetch: Callable[[str], Awaitable[Bundle]]
    stage: Callable[[str, Bundle], Awaitable[None]]
    unstage: Callable[[str], Awaitable[None]]
    pin: Callable[[set[str]], None]
    """Only bundles with other digests than these may leave the cache."""
    open_puller: Callable[[Lane, str], Puller]
    """For a lane, from the queue of that name; "" for the one called by the deployment."""
    token_counter: Callable[[str, str, str], TokenCounter | None]
    merging: Callable[[Inference, str, bytes], Infer | None]
    """How to ask a model, by its serialized ModelConfigResponse, for several callers at once."""
    on_change: Callable[[], None]
    on_event: Callable[[str, Message], None]
    loading: asyncio.Semaphore
    suspects: asyncio.Lock
    """Held while a model is loaded that may have crashed Triton before, or took too long."""
    load_within_s: float
    """Longest that Triton may take to load a model."""


class Replica:
    """One deployment's model on this node. `run` it as a task, then `leave`."""

    def __init__(
        self,
        assignment: Assignment,
        tools: Tools,
        after: frozenset[asyncio.Task[None]] = frozenset(),
    ) -> None:
        self.assignment = assignment
        self.state: status_pb2.ReplicaState.ValueType = FETCHING
        self.reason = ""
        self.leaving = False
        self.settled = False
        """Whether it has come up once, or failed so often that nobody should wait for it."""
        self.model_metadata = b""
        self.model_config = b""
        self._tools = tools
        self._after = after  # models on their way out: it may get the memory that they still hold
        self._staged = False
        self.failed_count = 0
        self.crashed_count = 0
        self._lane: Lane | None = None
        self._puller: Puller | None = None
        self._session: Session | None = None
        self._load: asyncio.Task[None] | None = None
        self._took_too_long = False
        self.on_probation = False
        """Whether Triton is being given it, and it has never been ready here."""
        self._was_ready = False
        self._wanted_s = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._live(), name=f"replica:{assignment.deployment}")

    @property
    def deployment(self) -> str:
        """Which deployment it serves."""
        return self.assignment.deployment

    def adjust(self, assignment: Assignment) -> None:
        """Take over slots, outputs and queue; all count from the next work on."""
        self.assignment = assignment
        if self._lane is not None and self._puller is not None:
            self._lane.count_tokens = self._token_counter()
            self._puller.adjust(assignment.slots, assignment.queue)
        self._tools.on_change()

    def doubt(self) -> None:
        """An answer could not be read: take nothing until the model has shown that it works."""
        if self._lane is not None:
            self._lane.doubt()

    async def drain(self, timeout_s: float) -> None:
        """Pull no more and let what is in hand finish; hand back what does not in time."""
        self.leaving = True
        if self.state is READY:
            self._set(DRAINING)
        if self._puller is not None:
            await self._puller.stop()
        if self._lane is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._lane.emptied()
        except TimeoutError:
            draining = "the node is draining"
            self._tools.work.hand_back(draining, self._lane, told_to_leave=True)
            await self._lane.emptied()

    async def leave(self, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        """Drain, unload and remove the model from the repository."""
        await self.drain(timeout_s)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._load is not None and not self._load.done():
            # Unloading what is just being loaded is a race at Triton.
            await asyncio.wait([self._load])
            error = None if self._load.cancelled() else self._load.exception()
            if _took_too_long(error) and self._session is not None:
                self._end_loading(self._session)
        await self._unload()
        if self._staged:
            await self._tools.unstage(self.deployment)

    async def abandon(self) -> None:
        """Stop without unloading: Triton is about to be stopped."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _live(self) -> None:
        """Bring it up, keep it up, and start over when it breaks, for ever."""
        while not self.leaving:
            self._session = None
            try:
                self._set(LOADING, await self._serve())
                continue
            except _TritonGone:
                self.failed_count += 1
                self.crashed_count += 1
                pause_s = backoff_s(
                    self.crashed_count, first_s=_CRASH_RETRY_FIRST_S, cap_s=_CRASH_RETRY_CAP_S
                )
                times = f"{self.crashed_count} times"
                self._fail(f"Triton died {times} while this model was being loaded")
            except (BusbarError, OSError) as error:
                pause_s = self._after_failure(str(error) or repr(error))
            except Exception as error:  # one model's trouble is not the others'
                log.exception("replica failed by a bug", deployment=self.deployment)
                pause_s = self._after_failure(repr(error))
            await self._unload()
            await asyncio.sleep(pause_s)

    def _after_failure(self, reason: str) -> float:
        self.failed_count += 1
        self._fail(reason)
        return backoff_s(
            self.failed_count - self.crashed_count, first_s=_RETRY_FIRST_S, cap_s=_RETRY_CAP_S
        )

    async def _serve(self) -> str:
        """Fetch, load, warm up, work; returns why it ended."""
        self._set(FETCHING)
        if not _NAME.match(self.deployment):
            raise Rejected(f"{self.deployment[:100]!r} is not a deployment's name")
        bundle = await self._tools.fetch(self.assignment.bundle_digest)
        if self._after:
            self._set(LOADING, "waiting for models that leave")
            await asyncio.wait(self._after)
            self._after = frozenset()
        self._set(LOADING, "waiting for Triton")
        async with self._turn():
            session = self._session = await self._tools.supervisor.session()
            self._set(LOADING)
            await self._bring_up(session, bundle)
        return await self._pull(session, bundle)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A bounded number load at a time; of those that crashed Triton or hung before, one."""
        async with contextlib.AsyncExitStack() as stack:
            if self.crashed_count or self._took_too_long:
                await stack.enter_async_context(self._tools.suspects)
            await stack.enter_async_context(self._tools.loading)
            yield

    async def _bring_up(self, session: Session, bundle: Bundle) -> None:
        self._staged, self.on_probation = True, not self._was_ready
        await self._tools.stage(self.deployment, bundle)
        await self._loaded(session)
        self._set(WARMING)
        await _under(session, bundle.warm_up(session.rpc, self.deployment))
        metadata = session.rpc.metadata(self.deployment, CONTROL_TIMEOUT_S)
        self.model_metadata = await _under(session, metadata)
        config = session.rpc.config(self.deployment, CONTROL_TIMEOUT_S)
        self.model_config = await _under(session, config)

    async def _loaded(self, session: Session) -> None:
        began_s, within_s = time.monotonic(), self._tools.load_within_s
        self._load = asyncio.create_task(session.rpc.load(self.deployment, within_s))
        self._load.add_done_callback(_heard)
        try:
            await _under(session, asyncio.shield(self._load))
        except TritonRefused as error:
            self._took_too_long = _took_too_long(error)
            if self._took_too_long:
                self._end_loading(session)
                raise TritonRefused(error.code, f"not loaded within {within_s:g} s") from error
            complaint = await _under(session, session.run.complaint(self.deployment, began_s))
            said = complaint[:_COMPLAINT_CHARS_MAX]
            raise TritonRefused(error.code, load_failure(error.reason, said)) from error

    async def _pull(self, session: Session, bundle: Bundle) -> str:
        lane = self._lane = Lane(
            deployment=self.deployment,
            credits=Credits(self.assignment.slots),
            triton=session.rpc,
            count_tokens=self._token_counter(),
            on_freed=_nothing,
            infer_merged=self._tools.merging(session.rpc, self.deployment, self.model_config),
            answers_within_s=bundle.answers_within_s,
        )
        puller = self._puller = self._tools.open_puller(lane, self.assignment.queue)
        puller.start()
        self._became_ready()
        reason = "the replica is being stopped"
        try:
            reason = await self._until_gone(session, bundle, lane)
            if not session.lost.is_set():
                self.failed_count += 1
            return reason
        finally:
            lane.loaded = False
            self._tools.work.hand_back(reason, lane)
            await puller.stop()
            self._lane = self._puller = None

    def _end_loading(self, session: Session) -> None:
        """Kill what Triton goes on waiting for: it would keep the next version waiting, too."""
        killed = session.run.kill(self.deployment)
        log.warning("loading took too long", deployment=self.deployment, killed=killed)

    def _became_ready(self) -> None:
        took_s = asyncio.get_running_loop().time() - self._wanted_s
        self.settled = self._was_ready = True
        self._took_too_long = False
        self.on_probation = False
        self._set(READY)
        event = events_pb2.ReplicaBecameReady(
            node=self._tools.node,
            deployment=self.deployment,
            bundle_digest=self.assignment.bundle_digest,
            took_ms=int(took_s * 1000),
        )
        self._tools.on_event("replica_became_ready", event)

    async def _until_gone(self, session: Session, bundle: Bundle, lane: Lane) -> str:
        """Wait until this run of Triton, or the model in it, is gone; returns what happened."""
        lasting_at_s = asyncio.get_running_loop().time() + _LASTING_S
        while not session.lost.is_set():
            if self.failed_count and asyncio.get_running_loop().time() >= lasting_at_s:
                self.failed_count = self.crashed_count = 0
                self._tools.on_change()
            try:
                if not await session.rpc.model_ready(self.deployment, CONTROL_TIMEOUT_S):
                    return "Triton no longer has the model"
                if lane.suspected.is_set() or lane.unchecked_for(bundle.checked_every_s):
                    await _under(session, self._asked(session, bundle, lane))
                    lane.trust()
            except WarmUpFailed as error:
                if not (error.hung or error.busy):
                    return error.reason
                # Nothing older is in hand that the check might have had to wait for.
                alone = self._tools.work.longest_in_hand(lane) > lane.suspect_since_s > 0.0
                if error.hung and (alone or lane.silent):
                    reason = f"{self.deployment} hangs: {error.reason}"
                    self._tools.supervisor.accuse(session, reason)
            except TritonRefused as error:
                log.warning("model not checked", deployment=self.deployment, reason=error.reason)
            except _TritonGone:
                break
            await _look_again(session.lost, lane.suspected)
        return "Triton was lost"

    async def _asked(self, session: Session, bundle: Bundle, lane: Lane) -> None:
        """Ask the warm-up question; who broke its promise to answer gets no longer for it."""
        within_s, began_s = bundle.answers_within_s if lane.silent else None, time.monotonic()
        try:
            async with asyncio.timeout(within_s):
                await bundle.warm_up(session.rpc, self.deployment)
        except TimeoutError:
            now_s = time.monotonic()
            reason = f"silent for {now_s - lane.heard_s:.1f} s, and to its warm-up question, too"
            stalled = within_s is None or now_s - began_s > within_s + _LAG_S  # ourselves, then
            raise WarmUpFailed(reason, hung=not stalled, busy=stalled) from None

    async def _unload(self) -> None:
        """Take the model out of Triton, as far as there is a Triton to take it out of."""
        session, self._session = self._session, None
        if session is None or session.lost.is_set():
            return
        with contextlib.suppress(TritonRefused, TimeoutError, _TritonGone):
            async with asyncio.timeout(UNLOAD_TIMEOUT_S):
                await _under(session, session.rpc.unload(self.deployment, CONTROL_TIMEOUT_S))
                while await self._still_there(session):
                    await asyncio.sleep(_POLL_S)

    async def _still_there(self, session: Session) -> bool:
        states = await _under(session, session.rpc.states(CONTROL_TIMEOUT_S))
        return states.get(self.deployment, "") in {"READY", "LOADING", "UNLOADING"}

    def _token_counter(self) -> TokenCounter | None:
        wanted = self.assignment
        return self._tools.token_counter(
            wanted.input_tokens_output, wanted.output_tokens_output, wanted.cached_tokens_output
        )

    def _fail(self, reason: str) -> None:
        self.on_probation = False
        self.settled = self.settled or given_up(self.failed_count, self.crashed_count)
        self._set(FAILED, reason)
        event = events_pb2.ReplicaFailed(
            node=self._tools.node,
            deployment=self.deployment,
            bundle_digest=self.assignment.bundle_digest,
            reason=reason,
        )
        self._tools.on_event("replica_failed", event)

    def _set(self, state: status_pb2.ReplicaState.ValueType, reason: str = "") -> None:
        if (state, reason) == (self.state, self.reason):
            return
        self.state, self.reason = state, reason
        log.info(
            "replica state",
            deployment=self.deployment,
            state=status_pb2.ReplicaState.Name(state),
            reason=reason,
        )
        self._tools.on_change()


async def _under(session: Session, work: Awaitable[T]) -> T:
    """The result of `work`; raises _TritonGone as soon as this run of Triton is lost."""
    task = asyncio.ensure_future(work)
    lost = asyncio.create_task(session.lost.wait())
    try:
        await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)
        if session.lost.is_set():
            raise _TritonGone
        try:
            return task.result()
        except TritonRefused as error:
            if error.code != "UNAVAILABLE" or not await _lost_soon(session):
                raise
            raise _TritonGone from error
    finally:
        lost.cancel()
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()


async def _look_again(lost: asyncio.Event, suspected: asyncio.Event) -> None:
    """Wait for the next look at the model: at once when Triton is lost, soon under suspicion.

    Otherwise on the beat, so that an idle node with many replicas wakes up once for all.
    """
    loop = asyncio.get_running_loop()
    soonest_s = loop.time() + _GUARD_SOONEST_S
    within_s = _GUARD_INTERVAL_S - loop.time() % _GUARD_INTERVAL_S
    if within_s < _GUARD_SOONEST_S:
        within_s += _GUARD_INTERVAL_S
    waits = [asyncio.create_task(event.wait()) for event in (lost, suspected)]
    try:
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if suspected.is_set() and not lost.is_set() and (left_s := soonest_s - loop.time()) > 0.0:
            await asyncio.wait(waits[:1], timeout=left_s)
    finally:
        for wait in waits:
            wait.cancel()


async def _lost_soon(session: Session) -> bool:
    """Whether a failed call was the first sign of a crash, which follows within moments."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            return await session.lost.wait()
    return False


def _took_too_long(error: BaseException | None) -> bool:
    return isinstance(error, TritonRefused) and error.code == "DEADLINE_EXCEEDED"


def _heard(load: asyncio.Task[None]) -> None:
    """How it ended is nobody's business any more where its replica has left."""
    if not load.cancelled():
        load.exception()


def _nothing() -> None:
    pass
