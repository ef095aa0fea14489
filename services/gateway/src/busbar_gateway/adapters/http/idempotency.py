"""Requests with an Idempotency-Key: served once, answered as often as they are asked.

Such a request runs by itself and is recorded; every client that sends it, the
first one included, follows the recording. A client that leaves cancels nothing,
because it may come back for the answer. The answer is kept before its last byte
leaves and before its charge counts as delivered, so a gateway that dies in
between charges nothing, and the next one serves the request anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Protocol

import structlog
from busbar_errors import BusbarError

from busbar_gateway.adapters.http.asked_model import asked_model
from busbar_gateway.adapters.http.errors import Headers
from busbar_gateway.adapters.http.exchange import Exchange
from busbar_gateway.adapters.http.limits import HttpLimits
from busbar_gateway.adapters.http.rate_limits import RATE_LIMIT_PREFIX
from busbar_gateway.adapters.idempotency_store import Found
from busbar_gateway.domain.answer_shares import share_left
from busbar_gateway.domain.failures import (
    IdempotencyKeyReused,
    IdempotencyShareSpent,
    IdempotentAnswerDropped,
    RateLimited,
    Unavailable,
)
from busbar_gateway.domain.idempotency import (
    Entry,
    KeptAnswer,
    Step,
    checked_key,
    entry_name,
    fingerprint_of,
    next_step,
)
from busbar_gateway.domain.routes import Caller

KEPT_BYTES_MAX = 4 * 1024 * 1024
"""A larger answer is given once and not kept; so is one for which its tenant has no room left."""
RUNNING_MAX = 512
"""Requests with a key that one gateway serves at a time, shared by the tenants."""
REPLAYED = (b"idempotent-replayed", b"true")

_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_READ_WITH = (b"content-encoding", b"content-type", b"inference-header-content-length")
_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.05, 1.0
_DEADLINE_MARGIN_S = 30.0
_CLEARING_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_CLEARING_MAX = 512
_OK = range(200, 300)

Serve = Callable[[Exchange], Awaitable[None]]
MayAsk = Callable[[Caller, str], None]
"""Raises what a caller's request for a model would be refused with whatever else it says."""
Record = Callable[[int, Headers, bytes, bool], Awaitable[None]]
"""Takes status, headers, a part of the answer, and whether more parts come."""
_log = structlog.get_logger()


class Store(Protocol):
    """Where keys and answers are kept; see IdempotencyStore."""

    async def find(self, name: str) -> Found | None:
        """Return what is known under `name`."""
        ...

    async def claim(self, name: str, entry: Entry, replaced: int | None) -> int | None:
        """Write an entry in place of revision `replaced`; None when another was first."""
        ...

    async def keep(self, name: str, entry: Entry, revision: int, tenant_id: str) -> None:
        """Add the answer to the entry claimed as `revision`; it counts for its tenant."""
        ...

    async def forget(self, name: str, revision: int) -> None:
        """Free a key whose request cost nothing."""
        ...

    def left_bytes(self, tenant_id: str) -> int:
        """How much more of this tenant's answers may be kept."""
        ...

    def wait_s(self, tenant_id: str) -> float:
        """After how long the first of this tenant's answers ends."""
        ...


def takes_key(exchange: Exchange) -> bool:
    """Whether this request costs money and asks to be served once."""
    if exchange.header(b"idempotency-key") is None or exchange.cycle.method != "POST":
        return False
    path = exchange.cycle.path
    return path in _PATHS or (path.startswith("/v2/models/") and path.endswith("/infer"))


@dataclass(slots=True, eq=False)
class Recording:
    """An answer as it comes into being; any number of clients follow it."""

    fingerprint: bytes
    status: int = 0
    headers: Headers = field(default_factory=Headers)
    parts: list[bytes] = field(default_factory=list[bytes])
    finished: bool = False
    replayed: bool = False
    failure: BaseException | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def changed(self) -> None:
        """Wake whoever follows."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, exchange: Exchange, *, first: bool) -> None:
        """Send everything to a client as it comes; raise what the request failed with."""
        await self._until(lambda: self.status > 0)
        headers = self.headers
        if self.replayed or not first:
            kept = [pair for pair in headers if not pair[0].startswith(RATE_LIMIT_PREFIX)]
            headers = [*kept, *exchange.rate_limits(), REPLAYED]
        exchange.status = self.status
        exchange.cycle.start(self.status, headers)
        sent, more = 0, True
        while more:
            await self._until(lambda sent=sent: self.finished or len(self.parts) > sent)
            waiting = self.parts[sent:]
            sent += len(waiting)
            more = not self.finished or sent < len(self.parts)
            await exchange.write(b"".join(waiting), more=more)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.failure is not None:
                raise self.failure
            await self._changed.wait()


@dataclass(slots=True)
class _Request:
    """A request apart from the connection it came on."""

    name: str
    exchange: Exchange
    body: bytes
    recording: Recording

    @property
    def tenant_id(self) -> str:
        """Whose it is."""
        return self.exchange.caller.tenant_id

    claimed: bool = False
    """Whether its claim may be in the store, and neither kept nor given up."""


class Idempotency:
    """Every request with a key at this gateway."""

    def __init__(
        self,
        store: Store,
        *,
        gateway_id: str,
        run_id: str,
        is_gone: Callable[[str, str], bool],
        may_ask: MayAsk,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._unix_s = unix_s
        self._gateway_id = gateway_id
        self._run_id = run_id
        self._is_gone = is_gone
        self._may_ask = may_ask
        self._running: dict[str, Recording] = {}
        self._running_of = Counter[str]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clearing: set[asyncio.Task[None]] = set()

    async def answer(self, exchange: Exchange, serve: Serve) -> None:
        """Answer with what the key's request is or was answered with; serve it when it is new.

        An answer belongs to a tenant, and not all of its API keys may have every model's.
        """
        key = checked_key(exchange.header(b"idempotency-key") or b"")
        body = await exchange.cycle.body(exchange.limits)
        model = asked_model(exchange, body)
        if model is not None:
            self._may_ask(exchange.caller, model)
        fingerprint = fingerprint_of(
            (
                exchange.cycle.query,
                *(exchange.header(name) or b"" for name in _READ_WITH),
            ),
            body,
        )
        name = entry_name(exchange.caller.tenant_id, exchange.cycle.path, key)
        recording = self._running.get(name)
        first = recording is None
        if recording is None:
            recording = Recording(fingerprint)
            self._start(_Request(name, exchange, body, recording), serve)
        elif recording.fingerprint != fingerprint:
            raise _reused()
        async with exchange.cancelled_when_gone():
            await recording.follow(exchange, first=first)

    async def drain(self, grace: timedelta) -> None:
        """Let what runs finish within the grace, then end it: it is not charged."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace.total_seconds())
        ending = [*self._tasks, *self._clearing]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _start(self, request: _Request, serve: Serve) -> None:
        own = self._running_of[request.tenant_id]
        if share_left(own, len(self._running), RUNNING_MAX) <= 0:
            raise RateLimited(
                f"{own} of your requests with an Idempotency-Key are being served, which is as many"
                " as can be now",
                1.0,
            )
        self._running[request.name] = request.recording
        self._running_of[request.tenant_id] += 1
        task = asyncio.create_task(self._carry_out(request, serve), name="idempotent-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, request: _Request, serve: Serve) -> None:
        recording = request.recording
        try:
            await self._find_or_serve(request, serve)
            if not recording.finished:  # or whoever follows would wait for ever
                recording.failure = _ended()
        except BaseException as error:
            recording.failure = error if isinstance(error, Exception) else _ended()
            if isinstance(error, asyncio.CancelledError):
                raise
            if not isinstance(error, BusbarError):
                await _log.aerror("idempotent request failed", exc_info=error)
        finally:
            del self._running[request.name]
            self._running_of -= Counter((request.tenant_id,))
            recording.changed()
            if request.claimed:
                self._clear_later(request.name, request.exchange.request_id)

    def _clear_later(self, name: str, request_id: bytes) -> None:
        """The store did not say whether it took or gave up a claim: others wait for as long as it
        may be there."""
        if len(self._clearing) < _CLEARING_MAX:
            task = asyncio.create_task(self._clear(name, request_id), name="idempotency-clearing")
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)

    async def _clear(self, name: str, request_id: bytes) -> None:
        for pause_s in _CLEARING_PAUSES_S:
            await asyncio.sleep(pause_s)
            with contextlib.suppress(BusbarError):
                found = await self._store.find(name)
                if found is None:
                    continue  # what was written late may still come
                if found.entry.request_id == request_id:
                    await self._store.forget(name, found.revision)
                return

    def _has_ended(self, gateway_id: str, run_id: str) -> bool:
        """Whether nobody serves a claim of that start of a gateway any more.

        Asked by the one request of its name that is served here, so a claim of this start is what
        is left of an earlier one.
        """
        if (gateway_id, run_id) == (self._gateway_id, self._run_id):
            return True
        return self._is_gone(gateway_id, run_id)

    async def _find_or_serve(self, request: _Request, serve: Serve) -> None:
        limits = request.exchange.limits
        give_up = asyncio.get_running_loop().time() + limits.generation_timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            found = await self._store.find(request.name)
            step = next_step(
                found and found.entry,
                request.recording.fingerprint,
                self._unix_s(),
                self._has_ended,
            )
            if step is Step.CONFLICT:
                raise _reused()
            if step is Step.GONE:
                raise IdempotentAnswerDropped(
                    "this request was answered and charged, but its answer was not kept: it was"
                    f" larger than {KEPT_BYTES_MAX} bytes, or than what was left of your share"
                )
            if step is Step.REPLAY and found is not None and found.entry.answer is not None:
                return _replay(found.entry.answer, request.recording)
            if step in {Step.SERVE, Step.TAKE_OVER}:
                self._check_share(request.tenant_id)
                entry = self._entry(request, limits)
                replaced = found.revision if found is not None else None
                request.claimed = True
                revision = await self._store.claim(request.name, entry, replaced)
                if revision is not None:
                    return await _Serving(self._store, request, entry, revision).run(serve)
                request.claimed = False
            if asyncio.get_running_loop().time() > give_up:
                raise Unavailable("another gateway is still serving this request", 2.0)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _check_share(self, tenant_id: str) -> None:
        if self._store.left_bytes(tenant_id) <= 0:
            raise IdempotencyShareSpent(
                "as many of your answers are kept under an Idempotency-Key as may be: send this"
                " request without one, or later, because each is kept for 24 hours",
                self._store.wait_s(tenant_id),
            )

    def _entry(self, request: _Request, limits: HttpLimits) -> Entry:
        return Entry(
            request.recording.fingerprint,
            self._gateway_id,
            self._run_id,
            request.exchange.request_id,
            self._unix_s() + limits.generation_timeout_s + _DEADLINE_MARGIN_S,
        )


class RecordedCycle:
    """The cycle of a request that was read already and that no connection holds any more."""

    def __init__(self, exchange: Exchange, body: bytes, record: Record) -> None:
        self.method, self.path = exchange.cycle.method, exchange.cycle.path
        self.headers, self.query = exchange.cycle.headers, exchange.cycle.query
        self.malformed: Exception | None = None
        self.started = False
        self.task: asyncio.Task[None] | None = None
        self.when_lost: Callable[[], object] | None = None  # nobody leaves a recording
        self.before_last: Callable[[], object] | None = None  # it is delivered once it is kept
        self._body = body
        self._record = record
        self._status = 0
        self._headers: Headers = []

    async def body(self, limits: HttpLimits) -> bytes:
        """As in Cycle; the limits held when it was read."""
        del limits
        return self._body

    def start(self, status: int, headers: Headers) -> None:
        """As in Cycle: until the first part the request may still fail as a whole."""
        self.started = True
        self._status, self._headers = status, headers

    async def write(self, part: bytes, *, more: bool) -> None:
        """As in Cycle."""
        await self._record(self._status, self._headers, part, more)


class _Serving:
    """Serves a claimed request into its recording, and keeps or frees the key."""

    def __init__(self, store: Store, request: _Request, entry: Entry, revision: int) -> None:
        self._store = store
        self._request = request
        self._entry = entry
        self._revision = revision
        self._recording = request.recording
        cycle = RecordedCycle(request.exchange, request.body, self._record)
        self._inner = replace(request.exchange, cycle=cycle, recorded=True)

    async def run(self, serve: Serve) -> None:
        """Serve; the key is free again unless the answer was kept."""
        try:
            await serve(self._inner)
        finally:
            if self._request.claimed:
                await self._give_up()

    async def _record(self, status: int, headers: Headers, part: bytes, more: bool) -> None:  # noqa: FBT001
        recording = self._recording
        recording.headers = headers
        if not more:
            await self._settle(status, part)
        recording.parts.append(part)
        recording.status, recording.finished = status, not more
        recording.changed()

    async def _settle(self, status: int, last: bytes) -> None:
        if status not in _OK or self._inner.failed:
            await self._give_up()
        else:
            recording = self._recording
            size = sum(map(len, recording.parts)) + len(last)
            size_max = min(KEPT_BYTES_MAX, self._store.left_bytes(self._request.tenant_id))
            body = b"".join([*recording.parts, last]) if size <= size_max else None
            answer = KeptAnswer(status, tuple(recording.headers), body)
            await self._keep(replace(self._entry, answer=answer))
            self._request.claimed = False

    async def _keep(self, entry: Entry) -> None:
        """Keep an answer; one that the store took without saying so is kept, too."""
        name = self._request.name
        try:
            await self._store.keep(name, entry, self._revision, self._request.tenant_id)
        except Unavailable:
            found = await self._store.find(name)
            if found is None or found.entry.answer is None:
                raise
            if found.entry.request_id != entry.request_id:
                raise

    async def _give_up(self) -> None:
        await self._store.forget(self._request.name, self._revision)
        self._request.claimed = False


def _replay(answer: KeptAnswer, recording: Recording) -> None:
    recording.headers = list(answer.headers)
    recording.parts.append(answer.body or b"")
    recording.status, recording.finished, recording.replayed = answer.status, True, True


def _reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused(
        "this Idempotency-Key was used for another request; use a new key for each request"
    )


def _ended() -> Unavailable:
    return Unavailable("the gateway stopped before the request was answered")
